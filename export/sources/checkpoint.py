"""What every source of weights looks like to the rest: a checkpoint in Phi-3's layout, read one tensor at a time."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from ...configs import AdapterEntry, ModelConfig
from ...configs.manifest import origin


class Checkpoint(ABC):
    """A model's weights under Phi-3's Hugging Face names, whatever the files behind it look like.

    Opening one checks all that can be checked without reading weights (files complete, names, shapes and dtypes);
    `read` never keeps what it returns and maps no file into memory, so peak memory is that of one tensor.
    """

    source: str
    """What the user named: a folder, a hub id, a `.gguf` file."""
    revision: str | None
    """The commit of a hub checkpoint; None for local files."""
    model: str
    """The model's short name, fit for a folder: `Phi-3-mini-4k-instruct`."""
    config: ModelConfig
    generation_config: Mapping[str, object]
    """The content of `generation_config.json`; its `eos_token_id` is the complete list of end tokens."""
    adapter: AdapterEntry | None = None
    """The PEFT adapter that is merged into the weights."""

    @property
    def origin(self) -> str:
        """Say which weights these are: the source, its revision, and the adapter."""
        return origin(str(self.source), self.revision, self.adapter)

    @abstractmethod
    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Return a tensor of `config.tensor_shapes()` as a new float32 array, or some of its rows.

        Raises:
            SourceError: the tensor's bytes cannot be read, or hold NaN or infinite values.

        """

    @abstractmethod
    def assets(self) -> Mapping[str, bytes]:
        """Return the tokenizer's files and chat template as they are, by the name they have in a package.

        Always `tokenizer.json` and `tokenizer_config.json`; `chat_template.jinja` where the model has a template.
        """
