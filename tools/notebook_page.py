"""A hook of mkdocs.yml: the notebook as a page of the site, with the outputs that are saved in it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

NOTEBOOK = "notebooks/evaluate.ipynb"
PAGE = "notebook"


def on_files(files: Files, config: Any) -> Files:
    """Add the page, and its pictures as files beside it."""
    notebook = json.loads((Path(config.config_file_path).parent / NOTEBOOK).read_text(encoding="utf-8"))
    blocks = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        blocks.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for number, output in enumerate(cell.get("outputs", [])):
            if "text" in output:
                blocks.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            if "image/png" in output.get("data", {}):
                name = f"{PAGE}/{cell['id']}-{number}.png"
                content = base64.b64decode("".join(output["data"]["image/png"]))
                files.append(File.generated(config, name, content=content))
                blocks.append(f"![What the cell above draws]({name})")
    files.append(File.generated(config, f"{PAGE}.md", content="\n\n".join(blocks)))
    return files
