"""How stored responses are judged, one module per kind of answer."""
