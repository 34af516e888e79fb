import threading
from pathlib import Path

from streamgauge.transforms.files import replace_text


def test_a_file_is_whole_whoever_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    texts = {letter * 200_000 for letter in "abc"}
    replace_text(path, "a" * 200_000)
    writers = [threading.Thread(target=lambda text=text: [replace_text(path, text) for _ in range(20)]) for text in texts]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in texts
    for writer in writers:
        writer.join()
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]
