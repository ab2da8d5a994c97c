"""Where examples come from; `mixer.input.SOURCES` names them."""
