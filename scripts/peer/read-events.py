"""Reads a folder of event files with TensorBoard's own reader and prints all scalars as one line of JSON: {tag: [[step, value],
...]}. Each line on standard input makes it look again, as a TensorBoard that stays open does.

usage: python read-events.py FOLDER
"""
import json
import sys

from tensorboard.backend.event_processing import event_accumulator


def main():
    everything = {kind: 0 for kind in event_accumulator.DEFAULT_SIZE_GUIDANCE}
    events = event_accumulator.EventAccumulator(sys.argv[1], size_guidance=everything)
    while True:
        events.Reload()
        scalars = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        texts = {tag: [e.tensor_proto.string_val[0].decode() for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
        print(json.dumps({"scalars": scalars, "texts": texts}), flush=True)
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main()
