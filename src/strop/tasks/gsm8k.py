"""GSM8K: grade-school word problems whose worked answers end in `#### n` (Cobbe et al. 2021)."""

from strop.data.rows import Row, read_rows
from strop.errors import StropError
from strop.tasks.base import SPLITS, register
from strop.tasks.extract import number_verdict, stated_number
from strop.types import Prompt, Verdict

DEV_ROWS = 500  # of the training file: GSM8K itself has no development split


@register("gsm8k")
class GSM8K:
    """Rows with `question` and `answer` from a file, else from the hub (openai/gsm8k), whose `test` is its own. A file
    serves as any split, but that `train` leaves its last tenth (at most 500 rows) to `dev`."""

    name = "gsm8k"

    def __init__(self, data: str | None = None):
        self.data = data

    def prompts(self, split: str) -> list[Prompt]:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        rows = list(enumerate(self._rows(split)))
        held = min(DEV_ROWS, len(rows) // 10)
        if split != "test" and held:
            rows = rows[-held:] if split == "dev" else rows[:-held]
        out = []
        for i, row in rows:
            if (number := stated_number(str(row["answer"]))) is None:
                raise StropError(f"{self.data or 'openai/gsm8k'}:{i + 1}: the answer does not end in '#### n'")
            extras = {"solution": row["answer"]}
            out.append(Prompt.user(row["question"], task=self.name, row=i, answer=number, extras=extras))
        return out

    def _rows(self, split: str) -> list[Row]:
        columns = ("question", "answer")
        if self.data is not None:
            return read_rows(self.data, columns)
        from huggingface_hub import hf_hub_download

        file = f"main/{'test' if split == 'test' else 'train'}-00000-of-00001.parquet"
        try:
            path = hf_hub_download("openai/gsm8k", file, repo_type="dataset")
        except Exception as error:  # the hub raises a dozen kinds
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise StropError(f"gsm8k: give data=FILE.jsonl; the hub says: {reason}") from error
        return read_rows(path, columns)

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        return number_verdict(prompt.answer, text)

    def gold(self, prompt: Prompt) -> str:
        return prompt.extras["solution"]
