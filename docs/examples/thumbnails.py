"""The ten lines. `zq worker --queue thumbnails --tasks thumbnails` in this folder runs what this submits."""

import zq

app = zq.App()


@app.task(queue="thumbnails", max_retries=3, time_limit_s=60)
def thumbnail(path: str, width_px: int = 320) -> str:
    return f"{path} at {width_px} px"


if __name__ == "__main__":
    job = thumbnail.delay("a.png", width_px=640)  # durable when this returns
    print(job.id, job.result(timeout_s=10))
