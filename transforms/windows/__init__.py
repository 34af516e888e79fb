"""Windows, by the name that job files use."""

from streamgauge.transforms.config import Registry

WINDOWS = Registry("windows", {"tumbling": "streamgauge.transforms.windows.tumbling:Tumbling"})
