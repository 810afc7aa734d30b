"""Samples that FastVideo has encoded: the rows of its .parquet files.

Its latents are those of the VAE as they come, and its trainers normalise them; its embeddings end
with the prompt. A row without latents (a prompt alone, an ODE trajectory) is no sample here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.models.codecs import VideoCodec
from trainers.data.prepared import PreparedSample, unpadded

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "torch.bfloat16": torch.bfloat16,
}


def read_samples(file: Path, codec: VideoCodec) -> tuple[list[PreparedSample], str]:
    """All samples of one file, and in a few words what is wrong with it, or nothing.

    ValueError where pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(
            "source: .parquet files are read by pyarrow; run `pip install pyarrow`"
        ) from error
    found, num_others = [], 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=1):
            (row,) = batch.to_pylist()
            if row.get("vae_latent_shape"):
                found.append(_sample(row, codec, file))
            else:
                num_others += 1
    except (ArrowException, OSError, KeyError, ValueError, RuntimeError) as error:
        return found, f"it is damaged or not FastVideo's ({str(error).splitlines()[0]})"
    return found, f"{num_others} of its rows have no latents" if num_others else ""


def _sample(row: Mapping[str, Any], codec: VideoCodec, file: Path) -> PreparedSample:
    latents = codec.normalise(_tensor(row, "vae_latent").float()[None])[0].half().cpu()
    prompt_embeds = unpadded(_tensor(row, "text_embedding").float())
    tensors = {"latents": latents, "prompt_embeds": prompt_embeds}
    origin = {"file": str(file), "id": row.get("id") or row.get("file_name") or ""}
    return PreparedSample(row["caption"], tuple(latents.shape), tensors, origin)


def _tensor(row: Mapping[str, Any], name: str) -> Tensor:
    dtype = DTYPES[row[f"{name}_dtype"]]
    values = torch.frombuffer(bytearray(row[f"{name}_bytes"]), dtype=dtype)
    return values.reshape(row[f"{name}_shape"])
