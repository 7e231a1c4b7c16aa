"""Play the tracked liver sweep as a live OpenIGTLink server: ``python benchmarks/play_liver_sweep.py FOLDER``.

Poses as ``ProbeToTracker`` (about 53 Hz), images as ``Image`` (23 per second on average), each with its own recorded
time as stamp. The image clock of the recording runs 0.5 s ahead of the tracker clock; that is taken out unless
``--keep-offset`` is given (then it has to be calibrated).
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

import cv2
import numpy as np

from drivers.openigtlink.player import PlayedImage, PlayedMessage, PlayedTransform, play
from drivers.openigtlink.sink import IgtlServer


def sweep_messages(folder: Path, *, keep_offset: bool = False) -> list[PlayedMessage]:
    """Everything between the first and the last moment at which both, poses and images, exist without a gap.

    Times are seconds of the tracker's clock.

    Raises
    ------
    FileNotFoundError
        When the video or the tracking file is missing.
    ValueError
        When the numbers of images and of their times differ.
    """
    video, tracking = folder / "liver_sweep.h264", folder / "liver_sweep_tracking.npz"
    for file in (video, tracking):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: not there; give the folder of the tracked liver sweep")
    with np.load(tracking) as data:
        poses, pose_times = data["tracker_poses"], data["tracker_time"]
        offset_s = 0.0 if keep_offset else float(data["temporal_offset_s"])
        image_times = data["frame_time"] - offset_s
    gaps = np.flatnonzero(np.diff(pose_times) > 0.2)
    end = pose_times[gaps[0]] if len(gaps) else pose_times[-1]
    begin = max(pose_times[0], image_times[0])
    out: list[PlayedMessage] = [
        PlayedTransform(float(t), "ProbeToTracker", pose)
        for t, pose in zip(pose_times, poses, strict=True)
        if begin <= t <= end
    ]
    images = read_grey_video(video)
    if len(images) != len(image_times):
        raise ValueError(f"{video.name} holds {len(images)} images, {tracking.name} {len(image_times)} times")
    out += [
        PlayedImage(float(t), "Image", image, np.eye(4))
        for t, image in zip(image_times, images, strict=True)
        if begin <= t <= end
    ]
    return out


def read_grey_video(file: Path) -> list[np.ndarray]:
    """All frames of a video, (rows, columns) uint8."""
    capture = cv2.VideoCapture(str(file))
    frames = []
    try:
        while True:
            found, frame = capture.read()
            if not found:
                return frames
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY))
    finally:
        capture.release()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with liver_sweep.h264 and liver_sweep_tracking.npz")
    parser.add_argument("--port", type=int, default=18944, help="0: any free one (default 18944)")
    parser.add_argument("--once", action="store_true", help="stop at the end instead of beginning again")
    parser.add_argument("--keep-offset", action="store_true", help="leave the 0.5 s between the two clocks in")
    args = parser.parse_args()
    messages = sweep_messages(args.folder, keep_offset=args.keep_offset)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with IgtlServer(port=args.port, name="Sweep") as server:
        print(f"{len(messages)} messages on 127.0.0.1:{server.port}, Ctrl-C ends", flush=True)
        play(server, messages, loop=not args.once, stop=stop)


if __name__ == "__main__":
    main()
