// Receives COUNT messages of `sender`, CRC checked, and prints "number sent_ns received_ns whole" for each.
//
//   receiver PORT COUNT
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <time.h>
#include <vector>

#include "igtlClientSocket.h"
#include "igtlImageMessage.h"
#include "igtlOSUtil.h"
#include "igtlTransformMessage.h"

static long long now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

struct Row {
  long long number, sent, received;
  int whole;
};

int main(int, char** argv) {
  const int port = atoi(argv[1]), count = atoi(argv[2]);
  igtl::ClientSocket::Pointer server = igtl::ClientSocket::New();
  if (server->ConnectToServer("127.0.0.1", port) != 0) return 1;
  igtl::MessageHeader::Pointer header = igtl::MessageHeader::New();
  igtl::TransformMessage::Pointer pose = igtl::TransformMessage::New();
  igtl::ImageMessage::Pointer image = igtl::ImageMessage::New();
  igtl::TimeStamp::Pointer stamp = igtl::TimeStamp::New();
  std::vector<Row> rows;
  rows.reserve(count);
  while ((int)rows.size() < count) {
    header->InitPack();
    if (server->Receive(header->GetPackPointer(), header->GetPackSize()) != header->GetPackSize()) break;
    header->Unpack();
    const bool is_pose = !strcmp(header->GetDeviceType(), "TRANSFORM");
    if (!is_pose && strcmp(header->GetDeviceType(), "IMAGE")) {
      server->Skip(header->GetBodySizeToRead(), 0);
      continue;
    }
    igtl::MessageBase* message = is_pose ? (igtl::MessageBase*)pose : (igtl::MessageBase*)image;
    message->SetMessageHeader(header);
    message->AllocatePack();
    server->Receive(message->GetPackBodyPointer(), message->GetPackBodySize());
    const int unpacked = message->Unpack(1);
    igtl::Matrix4x4 matrix;
    if (is_pose) pose->GetMatrix(matrix);
    Row row;
    row.received = now_ns();
    message->GetTimeStamp(stamp);
    unsigned int seconds, fraction;
    stamp->GetTimeStamp(&seconds, &fraction);
    row.sent = seconds * 1000000000LL + fraction;
    row.whole = (unpacked & igtl::MessageHeader::UNPACK_BODY) != 0;
    if (is_pose) {
      row.number = (long long)matrix[0][3];
    } else {
      const unsigned char* pixels = (const unsigned char*)image->GetScalarPointer();
      int number;
      memcpy(&number, pixels, 4);
      row.number = number;
      const unsigned char expected = (37 * number) % 251;
      for (long long at = 4; at < image->GetImageSize(); at++) row.whole &= pixels[at] == expected;
    }
    rows.push_back(row);
  }
  for (size_t n = 0; n < rows.size(); n++)
    printf("%lld %lld %lld %d\n", rows[n].number, rows[n].sent, rows[n].received, rows[n].whole);
  return 0;
}
