"""What the server says of itself when a client connects: its name, one sentence, and an icon."""

from base64 import b64encode

from mcp.types import Icon

NAME = "virtualmle"
TITLE = "VirtualMLE"
DESCRIPTION = "A virtual ML engineer that tunes sequential recommenders (SASRec, HSTU)"

# A line that climbs to a point. It is small, because every answer of the newest protocol version repeats it
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path fill="#1f4e8c" d="M0 0h24v24H0z"/>'
    '<path d="M4 18h4v-5h5V8h6" fill="none" stroke="#fff" stroke-width="3"/></svg>'
)
ICON = Icon(src=f"data:image/svg+xml;base64,{b64encode(_SVG.encode()).decode()}", mime_type="image/svg+xml")
