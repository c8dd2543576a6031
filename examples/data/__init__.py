"""Keypoint files to try things on, also where the package is installed: `importlib.resources.files("probpose.examples")`."""
