"""What a model's depth means: which tensors are its layers, and which config fields depend on how many there are.

Pure functions on the raw `config.json` dict and on tensor names; nothing here opens a file or knows torch.

    stack       find the one stack of decoder layers, take tensor names apart
    depth       the config of a deepened model
    patterns    what families imply by a layer's position
    kinship     what cannot be deepened, and why
    residual    which tensors write into the residual stream
    dimensions  the sizes that pricing needs
    llama       Mistral as Llama
"""

from deepen.architecture.depth import deepen_config
from deepen.architecture.dimensions import Dimensions, check_sizes, dimensions
from deepen.architecture.llama import as_llama
from deepen.architecture.residual import residual_writers
from deepen.architecture.stack import Stack, extra_layers, find_stack, join_name, split_name, warnings_for

__all__ = [
    "Dimensions",
    "Stack",
    "as_llama",
    "check_sizes",
    "deepen_config",
    "dimensions",
    "extra_layers",
    "find_stack",
    "join_name",
    "residual_writers",
    "split_name",
    "warnings_for",
]
