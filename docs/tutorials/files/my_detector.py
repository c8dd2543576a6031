import cv2
import numpy as np

from probpose.video import People

JOINTS = 17


def paint(frame, keypoints):
    """A dot for every joint, each of another hue."""
    for joint, point in enumerate(keypoints):
        if np.isfinite(point).all():
            hue = np.uint8([[[180 * joint // JOINTS, 255, 255]]])
            colour = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].tolist()
            cv2.circle(frame, [round(float(value)) for value in point], 8, colour, -1)


def detect(frames):
    """The people in each frame: (height, width, 3) uint8 RGB arrays in, People out."""
    return [find_dots(frame) for frame in frames]


def find_dots(frame):
    hue, saturation, value = cv2.split(cv2.cvtColor(frame, cv2.COLOR_RGB2HSV))
    y, x = np.nonzero((saturation > 128) & (value > 128))
    joint = np.round(hue[y, x] * (JOINTS / 180)).astype(int) % JOINTS
    area = np.bincount(joint, minlength=JOINTS)
    sums = [np.bincount(joint, along, JOINTS) for along in (x, y)]
    centres = np.stack(sums, axis=-1) / np.maximum(area, 1)[:, None]
    visible = np.minimum(area / (np.pi * 8**2), 1)  # a hidden dot is not seen
    return People(centres[None], visible[None])


detect.skeleton = "h36m_17"
