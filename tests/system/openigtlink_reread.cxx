// Reads messages from standard input with the OpenIGTLink C++ library (CRC checked), takes them apart, packs them again,
// and writes them to standard output. A message that the library cannot read ends it with its number.
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>

#include "igtlBindMessage.h"
#include "igtlCapabilityMessage.h"
#include "igtlColorTableMessage.h"
#include "igtlImageMessage.h"
#include "igtlImageMetaMessage.h"
#include "igtlLabelMetaMessage.h"
#include "igtlMessageHeader.h"
#include "igtlNDArrayMessage.h"
#include "igtlPointMessage.h"
#include "igtlPolyDataMessage.h"
#include "igtlPositionMessage.h"
#include "igtlQuaternionTrackingDataMessage.h"
#include "igtlSensorMessage.h"
#include "igtlStatusMessage.h"
#include "igtlStringMessage.h"
#include "igtlTrackingDataMessage.h"
#include "igtlTrajectoryMessage.h"
#include "igtlTransformMessage.h"

namespace {

igtl::MessageBase::Pointer make(const std::string& type)
{
#define MAKE(name, class_name) \
  if (type == name) { return igtl::MessageBase::Pointer(igtl::class_name::New().GetPointer()); }
  MAKE("TRANSFORM", TransformMessage)
  MAKE("POSITION", PositionMessage)
  MAKE("TDATA", TrackingDataMessage)
  MAKE("STT_TDATA", StartTrackingDataMessage)
  MAKE("RTS_TDATA", RTSTrackingDataMessage)
  MAKE("QTDATA", QuaternionTrackingDataMessage)
  MAKE("STT_QTDATA", StartQuaternionTrackingDataMessage)
  MAKE("IMAGE", ImageMessage)
  MAKE("IMGMETA", ImageMetaMessage)
  MAKE("LBMETA", LabelMetaMessage)
  MAKE("STATUS", StatusMessage)
  MAKE("STRING", StringMessage)
  MAKE("POINT", PointMessage)
  MAKE("TRAJ", TrajectoryMessage)
  MAKE("SENSOR", SensorMessage)
  MAKE("NDARRAY", NDArrayMessage)
  MAKE("COLORTABLE", ColorTableMessage)
  MAKE("POLYDATA", PolyDataMessage)
  MAKE("CAPABILITY", CapabilityMessage)
  return nullptr;
}

}  // namespace

int main()
{
  for (int number = 1;; ++number) {
    igtl::MessageHeader::Pointer header = igtl::MessageHeader::New();
    header->InitPack();
    if (std::fread(header->GetPackPointer(), 1, header->GetPackSize(), stdin) != size_t(header->GetPackSize())) {
      return 0;
    }
    header->Unpack();
    igtl::MessageBase::Pointer message = make(header->GetDeviceType());
    if (message.IsNull()) {
      return number;
    }
    message->SetMessageHeader(header);
    message->AllocatePack();
    const size_t size = message->GetPackBodySize();
    if (std::fread(message->GetPackBodyPointer(), 1, size, stdin) != size) {
      return number;
    }
    if (!(message->Unpack(1) & igtl::MessageHeader::UNPACK_BODY)) {
      return number;
    }
    message->Pack();
    std::fwrite(message->GetPackPointer(), 1, message->GetPackSize(), stdout);
  }
}
