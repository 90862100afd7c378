"""HEIC files, by pillow-heif: the primary image, 10 and 12 bits as 16."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlrn.errors import InputError
from nlrn.io.boxes import boxes, brands
from nlrn.io.further import HEIC, CheckSize, planes, widened
from nlrn.io.metadata import Decoded, FileMetadata, loaded_exif, tagged_dpi
from nlrn.io.texts import Texts

_SEQUENCES = frozenset({b"hevc", b"hevx", b"hevm", b"hevs"})


def read(data: bytes, gps: bool, check_size: CheckSize, before_pixels: CheckSize) -> Decoded:
    """The image that the file declares as its primary one, turned as it says; see nlrn.io.further.read."""
    heif = HEIC.library("pillow_heif")
    found = [box.kind for box in boxes(data)]
    if b"moov" in found and brands(data) & _SEQUENCES:
        raise InputError("a sequence of frames; expected a single image", limit="frames")
    heif.options.DECODE_THREADS = 1  # each takes of the memory that is allowed
    for name in ("THUMBNAILS", "DEPTH_IMAGES", "AUX_IMAGES"):
        setattr(heif.options, name, False)
    file = heif.open_heif(data, convert_hdr_to_8bit=False, hdr_to_16bit=False)
    image: Any = file[file.primary_index]
    size = image.size
    check_size(*size)
    if image.premultiplied_alpha:
        raise InputError("its alpha was multiplied into the colour; save it unassociated")
    before_pixels(*size)
    values = np.asarray(image)
    if values.shape[:2] != size[::-1]:
        raise InputError("damaged: its image is of another size than declared")
    colour, alpha = planes(widened(values, int(image.info["bit_depth"])))
    exif = loaded_exif(image.info.get("exif") or b"")
    others = len(file) - 1
    texts = Texts(image.info.get("xmp") or b"")
    notes = (f"left out: {others} more {'image' if others == 1 else 'images'} of the file",) if others else ()
    # The orientation in the EXIF is a copy of the file's own, which has been applied
    icc = image.info.get("icc_profile") or None
    metadata = FileMetadata(exif, None, icc, tagged_dpi(exif), notes=notes, texts=texts)
    return metadata.decoded(colour, alpha, "HEIC", gps)
