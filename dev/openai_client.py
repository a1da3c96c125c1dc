#!/usr/bin/env python3
"""`warpsmith serve`, used by OpenAI's own Python client and by lm_eval's model local-completions.

A part of dev/interop.py. A small model is trained, exported and served. What the clients get is what transformers
computes from the export.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import torch

from programs import ROOT, run

KEY = "secret"
TEMPLATE = {"messages": {"system": "{content}\n", "user": "Q: {content}\n", "assistant": "A: {content}\n"}}
PROMPTS = ["Once upon a time", "The naïve café 🦀", "x"]


class OpenAIClient(unittest.TestCase):
    """The types, numbers and exceptions of the official client."""

    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.dir = Path(folder.name)
        run("warpsmith", "stories", "-o", "data", "--tokens", "60000", cwd=cls.dir)
        shape = "--layers 2 --heads 2 --channels 64 -b 4 -t 128 -x 30 -l 3e-3 -v 0 -s 0".split()
        data = ["-i", "data/stories_train_*.bin", "-j", "data/stories_val_*.bin"]
        run("train_gpt2", *data, *shape, "-o", "out", cwd=cls.dir)
        run("warpsmith", "convert", "out", "hf/model.safetensors", cwd=cls.dir)
        (cls.dir / "chat.json").write_text(json.dumps(TEMPLATE))
        command = [ROOT / "warpsmith", "serve", "-e", "hf", "--port", "0", "--slots", "4", "--queue", "8"]
        env = {**os.environ, "WARPSMITH_API_KEY": KEY}
        cls.server = subprocess.Popen(
            [*command, "--template", "chat.json"], cwd=cls.dir, env=env, stdout=subprocess.PIPE, text=True
        )
        cls.addClassCleanup(cls.stop)
        cls.url = cls.server.stdout.readline().strip() + "/v1"

        from openai import OpenAI
        from transformers import AutoModelForCausalLM, AutoTokenizer

        cls.client = OpenAI(base_url=cls.url, api_key=KEY, max_retries=0)
        cls.addClassCleanup(cls.client.close)
        cls.model = AutoModelForCausalLM.from_pretrained(cls.dir / "hf", dtype=torch.float32).eval()
        cls.tokenizer = AutoTokenizer.from_pretrained(cls.dir / "hf")

    @classmethod
    def stop(cls) -> None:
        cls.server.terminate()
        status = cls.server.wait(60)
        cls.server.stdout.close()
        if status != 0:
            raise AssertionError(f"serve: exit code {status}")

    def complete(self, prompt: object, **options: object) -> object:
        return self.client.completions.create(model="hf", prompt=prompt, **options)

    def test_models(self) -> None:
        self.assertEqual([model.id for model in self.client.models.list()], ["hf"])
        self.assertEqual(self.client.models.retrieve("hf").owned_by, "warpsmith")

    def test_greedy_text_and_its_probabilities(self) -> None:
        for prompt in PROMPTS:
            answer = self.complete(prompt, max_tokens=24, temperature=0, logprobs=3)
            ids = self.tokenizer(prompt, return_tensors="pt").input_ids
            with torch.no_grad():
                whole = self.model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=50256)
                logprobs = self.model(whole).logits.log_softmax(-1)[0, ids.shape[1] - 1 : -1]
            new = [token for token in whole[0, ids.shape[1] :].tolist() if token != 50256]
            [choice] = answer.choices
            self.assertEqual(choice.text, self.tokenizer.decode(new, clean_up_tokenization_spaces=False))
            self.assertEqual(choice.finish_reason, "length" if len(new) == 24 else "stop")
            self.assertEqual((answer.usage.prompt_tokens, answer.usage.completion_tokens), (ids.shape[1], len(new)))
            found = torch.tensor(choice.logprobs.token_logprobs)
            expected = logprobs[: len(new)].max(-1).values
            self.assertTrue(torch.allclose(found, expected, rtol=0, atol=1e-4), (found, expected))
            best = torch.tensor([sorted(top.values()) for top in choice.logprobs.top_logprobs])
            expected = logprobs[: len(new)].topk(3).values.flip(-1)
            self.assertTrue(torch.allclose(best, expected, rtol=0, atol=1e-4), (best, expected))
            echoed = self.complete(prompt, max_tokens=24, temperature=0, echo=True)
            self.assertEqual(echoed.choices[0].text, prompt + choice.text)
        ids = [self.tokenizer(prompt).input_ids for prompt in PROMPTS]
        texts = [self.complete(prompts, max_tokens=9, temperature=0).choices for prompts in (PROMPTS, ids)]
        self.assertEqual(*[[choice.text for choice in choices] for choices in texts])

    def test_streams_at_the_same_time(self) -> None:
        from openai import AsyncOpenAI

        options = [dict(max_tokens=16 + seed, seed=seed, temperature=0.9, top_p=0.95, n=1 + seed % 2) for seed in range(8)]
        alone = [[choice.text for choice in self.complete("Once", **option).choices] for option in options]

        async def streamed(client: AsyncOpenAI, option: dict) -> list[str]:
            texts = [""] * option["n"]
            more = {"stream": True, "stream_options": {"include_usage": True}}
            async for part in await client.completions.create(model="hf", prompt="Once", **option, **more):
                for choice in part.choices:
                    texts[choice.index] += choice.text
                usage = part.usage
            self.assertGreater(usage.total_tokens, 1)
            return texts

        async def all_of_them() -> list[list[str]]:
            async with AsyncOpenAI(base_url=self.url, api_key=KEY) as client:
                return await asyncio.gather(*(streamed(client, option) for option in options))

        self.assertEqual(asyncio.run(all_of_them()), alone)

    def test_conversations(self) -> None:
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "I."},
            {"role": "user", "content": "When?"},
        ]
        eot = self.tokenizer.eos_token_id
        texts = ["Be brief.\nQ: Who?\nA: ", "I.\n", "Q: When?\nA: "]
        given, answer, rest = [self.tokenizer(text).input_ids for text in texts]
        expected = self.complete(given + answer + [eot] + rest, max_tokens=20, seed=1)
        options = {"model": "hf", "messages": messages, "max_completion_tokens": 20, "seed": 1}
        whole = self.client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
        [choice] = whole.choices
        self.assertEqual(choice.message.content.rstrip("\n"), expected.choices[0].text.rstrip("\n"))
        self.assertEqual(whole.usage.prompt_tokens, expected.usage.prompt_tokens)
        self.assertEqual(len(choice.logprobs.content), whole.usage.completion_tokens)
        parts = list(self.client.chat.completions.create(**options, stream=True))
        self.assertEqual("".join(part.choices[0].delta.content or "" for part in parts), choice.message.content)
        self.assertEqual(parts[0].choices[0].delta.role, "assistant")
        self.assertEqual(parts[-1].choices[0].finish_reason, choice.finish_reason)

    def test_exceptions(self) -> None:
        import openai

        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.completions.create(model="other", prompt="")
        self.assertEqual(caught.exception.code, "model_not_found")
        for options, param in [
            ({"max_tokens": 9999}, "prompt"),
            ({"temperature": 3}, "temperature"),
            ({"suffix": "end"}, "suffix"),
            ({"extra_body": {"beams": 2}}, "beams"),
        ]:
            with self.assertRaises(openai.BadRequestError) as caught:
                self.complete("", **options)
            self.assertEqual((caught.exception.param, caught.exception.type), (param, "invalid_request_error"))
        with self.assertRaises(openai.AuthenticationError):
            openai.OpenAI(base_url=self.url, api_key="other").models.list()
        with self.complete("Once", n=12, max_tokens=100, stream=True, logit_bias={"50256": -100}) as parts:
            next(iter(parts))
            with self.assertRaises(openai.RateLimitError):
                self.complete("")
        # The stream above was left: its slots come free.
        self.assertTrue(self.client.with_options(max_retries=9).completions.create(model="hf", prompt="").choices)

    def test_lm_eval(self) -> None:
        """Log-likelihoods of lm_eval over the API are those of its own model."""
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
        from lm_eval.models.openai_completions import LocalCompletionsAPI

        pairs = [("Once upon a time", " there was a dog"), ("The dog", " ran"), ("A", " B c d e f")]
        requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
        remote = LocalCompletionsAPI(
            base_url=self.url + "/completions", model="hf", tokenizer=str(self.dir / "hf"),
            tokenizer_backend="huggingface", header={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
            batch_size=2, max_length=128,
        )  # fmt: skip
        theirs = HFLM(pretrained=str(self.dir / "hf"), device="cpu", dtype="float32").loglikelihood(requests)
        for (ours, greedy), (expected, expected_greedy) in zip(remote.loglikelihood(requests), theirs, strict=True):
            self.assertAlmostEqual(ours, expected, delta=1e-3)
            self.assertEqual(greedy, expected_greedy)


if __name__ == "__main__":
    unittest.main(verbosity=2)
