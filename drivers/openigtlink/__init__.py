"""OpenIGTLink: framing, codec and transport as three parts.

`wire` holds the header, stamps, metadata and the two error trees; `framing` turns bytes in any split into whole
messages; `contents` packs and unpacks the bodies; `codec` joins both to the program's own message types; `source`
receives, `sink` serves, `player` plays recordings as live sources.
"""
