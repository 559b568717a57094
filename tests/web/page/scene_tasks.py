"""Tasks of a university's other work, for the page to show: some go well, some slowly, some not at all."""

from __future__ import annotations

import time

import zq

app = zq.App()


@app.task(queue="reports")
def transcript(student_id: str, exam_id: str) -> dict[str, object]:
    """Quick, and done."""
    return {"student_id": student_id, "exam_id": exam_id, "pages": 3}


@app.task(queue="reports")
def contact_sheet(exam_id: str, pictures: int = 240, seconds: float = 60.0) -> int:
    """Slow, busy, and it tells how far it is."""
    began_s = time.monotonic()
    while (ran_s := time.monotonic() - began_s) < seconds:
        done = int(pictures * ran_s / seconds)
        zq.current_job().progress(done, pictures, f"picture {done} of {pictures}")
        kept = bytearray(4_000_000)
        spin_s = time.monotonic() + 0.12
        while time.monotonic() < spin_s:
            kept[0] = (kept[0] + 1) % 256
        time.sleep(0.2)
    return pictures


@app.task(queue="mail", max_retries=0)
def notify(student_id: str, smtp: str = "mail-2") -> None:
    if smtp == "unreachable":
        raise ConnectionRefusedError(f"[Errno 111] connection refused by 10.0.4.{len(student_id) + 12}:25")
    raise zq.Reject(f"no address is on record for student {student_id}")
