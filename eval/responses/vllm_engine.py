"""vLLM in this process. Importing this module imports vLLM."""

from typing import Any

from lm_eval.models.utils import postprocess_generated_text
from lm_eval.models.vllm_causallms import VLLM
from typing_extensions import override
from vllm import SamplingParams, TokensPrompt
from vllm.sampling_params import RequestOutputKind

from eval.responses.continuous import Continuous
from eval.responses.process_guard import ProcessGuard

_STOP_SECONDS = 60.0  # for processes that are told to stop; then they are killed


class ContinuousVLLM(Continuous, VLLM):
    """The harness's vLLM, whose requests are added while others run instead of in batches that wait for the longest.

    Tokenizing, arguments of generation, stop sequences and likelihoods are the harness's.
    """

    def __init__(self, **arguments: Any) -> None:
        self._stops: dict[str, list[str]] = {}
        self.guard = ProcessGuard()
        try:
            VLLM.__init__(self, **arguments)
        except BaseException:  # also Ctrl-C: an engine that was loading would keep its memory
            self.guard.close()
            raise
        self.guard.started()
        self.capacity = self.model.llm_engine.vllm_config.scheduler_config.max_num_seqs

    @property
    @override
    def pending(self) -> int:
        return len(self._stops)

    @override
    def seed_key(self, prompt: str) -> str:
        return repr(self.tok_encode(prompt))

    @override
    def submit(self, identity: int, prompt: str, decoding: dict[str, Any], seed: int) -> None:
        eos = self.tokenizer.decode(self.eot_token_id)
        arguments, stops, longest = self.modify_gen_kwargs(decoding, eos=eos)
        parameters = SamplingParams(
            max_tokens=longest, stop=stops, seed=seed, output_kind=RequestOutputKind.FINAL_ONLY, **arguments
        )
        ids = self.tok_encode(prompt)
        self._stops[str(identity)] = stops
        self.model.llm_engine.add_request(str(identity), TokensPrompt(prompt_token_ids=ids), parameters)

    @override
    def collect(self) -> dict[int, str]:
        ended = [output for output in self.model.llm_engine.step() if output.finished]
        return {
            int(output.request_id): postprocess_generated_text(
                output.outputs[0].text, self._stops.pop(output.request_id), None
            )
            for output in ended
        }

    def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
        # For likelihoods. The harness asks for vLLM's progress bar, which divides by zero where bars are switched off.
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in requests]
        parameters = SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=1, detokenize=False)
        return self.model.generate(prompts, sampling_params=parameters, use_tqdm=False)

    def close(self) -> None:
        """Stop vLLM's processes and wait for their end."""
        try:
            self.model.llm_engine.engine_core.shutdown(timeout=_STOP_SECONDS)
        finally:
            self.guard.close()
