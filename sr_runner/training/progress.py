"""What a person sees of a run: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger(__name__)

_FIRST_LINE, _LINE_EVERY = 1.0, 10.0  # seconds; a short run wants to be seen too
_BAR_EVERY = 0.2


class Progress:
    """Shows the step, the latest loss and PSNR, images per second and the time left.

    `advance` is called every step and does nothing until it is time to show something.
    """

    def __init__(self, *, total: int, step: int, bar: bool | None = None):
        self._total, self._samples, self._step = total, 0, step
        self._fields: dict[str, str] = {}
        use_bar = sys.stderr.isatty() if bar is None else bar
        self._bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, leave=True) if use_bar else None
        self._every = _BAR_EVERY if use_bar else _FIRST_LINE
        self._since, self._shown_step, self._due = time.perf_counter(), step, time.perf_counter() + self._every

    def advance(self, step: int, samples: int) -> None:
        """`samples`: of one step."""
        self._step, self._samples = step, samples
        if time.perf_counter() >= self._due:
            self.show()

    def note(self, **fields: str) -> None:
        """Fields to show from now on, such as `loss="0.0123"`."""
        self._fields |= fields

    def pause(self, seconds: float) -> None:
        """Leave `seconds` (an evaluation) out of the rate."""
        self._since += seconds

    def show(self) -> None:
        now = time.perf_counter()
        elapsed = now - self._since
        if self._step > self._shown_step and elapsed > 0:
            rate = (self._step - self._shown_step) / elapsed
            self._fields["images/s"] = f"{rate * self._samples:.1f}"
            self._fields["left"] = tqdm.format_interval((self._total - self._step) / rate)
        self._since, self._shown_step, self._due = now, self._step, now + self._every
        if self._bar is not None:
            self._bar.set_postfix({k: v for k, v in self._fields.items() if k != "left"}, refresh=False)
            self._bar.update(self._step - self._bar.n)
        else:
            text = ", ".join(f"{key} {value}" for key, value in self._fields.items())
            log.info("step %d of %d%s", self._step, self._total, f": {text}" if text else "")
            self._every = min(2 * self._every, _LINE_EVERY)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.update(self._step - self._bar.n)
            self._bar.close()
        elif self._step > self._shown_step:
            self.show()


class BarSafeHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes log lines above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)
