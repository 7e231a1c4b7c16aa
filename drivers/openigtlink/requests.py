"""What a source says to a server first: which header version it reads, and what it wants to be sent."""

from __future__ import annotations

from xml.etree import ElementTree

from drivers.openigtlink.codec import encode_content, encode_status
from drivers.openigtlink.contents import ClientInfoContent, StartTrackingContent
from drivers.openigtlink.wire import DEVICE_NAME_BYTES
from nav.config.room import SourceConfig, SubscriptionConfig

__all__ = ["client_info", "opening_messages", "start_tracking"]


def opening_messages(config: SourceConfig) -> list[bytes]:
    """The messages to send on every new connection, in order.

    * ``client_info``: one CLIENTINFO (header version 2) that asks a PLUS server for the tools and images of the
      configuration, whatever its own configuration sends by default.
    * else ``header_version = 2``: one STATUS of version 2. PLUS answers with version 2, and so with the status of the
      tools, only once it has heard version 2.
    * ``subscribe``: STT_TDATA or STT_QTDATA, for servers that send tracking data only when asked to.
    """
    name = config.name.encode()[:DEVICE_NAME_BYTES].decode()
    messages = []
    if config.client_info:
        messages.append(client_info(name, config))
    elif config.header_version == 2:
        messages.append(encode_status(name, version=2))
    messages += [start_tracking(name, subscription) for subscription in config.subscribe]
    return messages


def client_info(name: str, config: SourceConfig) -> bytes:
    """CLIENTINFO of PLUS.

    Source: PlusLib, ``PlusIgtlClientInfo`` (``ClientHeaderVersion`` must be in it, it sets the version of the answers).
    An image device is named ``<Name>_<Frame>`` by PLUS; a name without a frame asks for the image's own.
    """
    root = ElementTree.Element("ClientInfo", ClientHeaderVersion="2")
    types = ElementTree.SubElement(root, "MessageTypes")
    transforms = ElementTree.SubElement(root, "TransformNames")
    images = ElementTree.SubElement(root, "ImageNames")
    if config.tools:
        ElementTree.SubElement(types, "Message", Type="TRANSFORM")
    if config.images:
        ElementTree.SubElement(types, "Message", Type="IMAGE")
    for tool in config.tools:
        ElementTree.SubElement(transforms, "Transform", Name=tool.device)
    for image in config.images:
        image_name, _, frame = image.device.partition("_")
        ElementTree.SubElement(images, "Image", Name=image_name, EmbeddedTransformToFrame=frame or image_name)
    return encode_content(name, ClientInfoContent(ElementTree.tostring(root, encoding="unicode")), version=2)


def start_tracking(name: str, subscription: SubscriptionConfig) -> bytes:
    """STT_TDATA or STT_QTDATA in header version 1, which every server reads."""
    content = StartTrackingContent(subscription.interval_ms, subscription.coordinates)
    return encode_content(subscription.device or name, content, type_name=f"STT_{subscription.kind.upper()}")
