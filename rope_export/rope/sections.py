"""Which axis of a (time, height, width) position each pair rotates with."""

from collections.abc import Sequence


def blocks(sections: Sequence[int]) -> tuple[int, ...]:
    """The axis of each pair, in one block an axis: sections (2, 3, 3) give 0 0 1 1 1 2 2 2.

    A longer list starts again with the first axis.
    Source: Qwen2-VL, arXiv:2409.12191, section 2.1; transformers 5.23, models/qwen2_vl.
    """
    return tuple(at % 3 for at, size in enumerate(sections) for _ in range(size))


def interleaved(sections: Sequence[int]) -> tuple[int, ...]:
    """The axis of each pair, alternating: 0 1 2 0 1 2 …, until an axis has as many as its section.

    Source: transformers 5.23, models/qwen3_vl.
    """
    axes = [0] * sum(sections)
    for axis, size in enumerate(sections[1:3], start=1):
        for pair in range(axis, 3 * size, 3):
            if pair < len(axes):
                axes[pair] = axis
    return tuple(axes)
