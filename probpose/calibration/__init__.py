"""Does the uncertainty mean something? Coverage, proper scores, recalibration, conformal radii."""
