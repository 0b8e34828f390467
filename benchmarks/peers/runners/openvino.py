"""OpenVINO GenAI with continuous batching, in process. optimum-intel converts the checkpoint."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator

from .command import run


class OpenVino:
    """One pipeline; its own scheduler batches."""

    def __init__(self, options: argparse.Namespace) -> None:
        import openvino
        import openvino_genai

        self._openvino, self._genai = openvino, openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 2  # GiB
        scheduler.max_num_seqs = 16
        scheduler.enable_prefix_caching = False
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(options.converted), scheduler, "CPU", {"INFERENCE_NUM_THREADS": options.threads}
        )
        self._ids: Iterator[int] = iter(range(1 << 30))

    def generate(self, prompts: list[list[int]], output_tokens: int) -> list[list[float]]:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = output_tokens
        config.ignore_eos = True
        config.do_sample = False
        moments = [[time.perf_counter()] for _ in prompts]
        handles = [
            self.pipeline.add_request(next(self._ids), self._openvino.Tensor([prompt]), config)
            for prompt in prompts
        ]
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            now = time.perf_counter()
            for stream, handle in zip(moments, handles, strict=True):
                while handle.can_read():
                    for output in handle.read().values():
                        stream.extend([now] * len(output.generated_ids))
        return moments


def prepare(options: argparse.Namespace) -> None:
    import nncf
    import openvino
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    unfinished = options.converted.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    main_export(
        model_name_or_path=str(options.model),
        output=unfinished,
        task="text-generation-with-past",
        ov_config=OVConfig(dtype="fp16"),  # computing is in bfloat16 where the processor has it
        convert_tokenizer=True,
    )
    if options.weights == "int8":
        file = unfinished / "openvino_model.xml"
        compressed = nncf.compress_weights(
            openvino.Core().read_model(file), mode=nncf.CompressWeightsMode.INT8_ASYM
        )
        openvino.save_model(compressed, unfinished / "int8.xml")
        for suffix in (".xml", ".bin"):
            (unfinished / f"int8{suffix}").replace(file.with_suffix(suffix))
    unfinished.rename(options.converted)


if __name__ == "__main__":
    run(OpenVino, prepare)
