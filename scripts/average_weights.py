"""The mean of the weights of two models of one shape, the second started from the first.

Between a model and what further training on other data made of it, the mean keeps most of what either knows (Wortsman
et al., Robust fine-tuning of zero-shot models, CVPR 2022). The metadata are the second's.

  git show 37186c7:src/nlrn/models/weights/denoise-photo-small.safetensors > before.safetensors
  python scripts/average_weights.py before.safetensors after.safetensors -o denoise-photo-small.safetensors --share 0.65
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nlrn.system.atomic import check_target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.5, help="of the second (default: 0.5)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    options = parser.parse_args()
    check_target(options.output, overwrite=options.overwrite)
    first, second, share = load_file(options.first), load_file(options.second), options.share
    shapes = [{name: tensor.shape for name, tensor in one.items()} for one in (first, second)]
    if shapes[0] != shapes[1] or not 0 <= share <= 1:
        parser.error("the weights must be of one shape, and --share lie between 0 and 1")
    with safe_open(options.second, "pt") as file:
        metadata = file.metadata()
    mean = {
        name: first[name] * (1 - share) + tensor * share if tensor.is_floating_point() else tensor
        for name, tensor in second.items()
    }
    save_file(mean, options.output, metadata=metadata)


if __name__ == "__main__":
    main()
