"""OpenIGTLink: framing, codec and transport as three parts.

`errors` holds the two error trees, `wire` the header, stamps, metadata and limits; `framing` turns bytes in any split
into whole messages; `contents` packs and unpacks the bodies of every type, `video_codecs` makes pictures of those of
VIDEO; `codec` joins all to the program's own message types, `json_form` to JSON; `source` receives, `sink` serves,
`player` plays recordings as live sources.
"""
