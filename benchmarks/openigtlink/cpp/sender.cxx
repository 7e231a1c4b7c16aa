// Serves one client: COUNT messages at RATE per second, each with its number and the moment at which it was sent.
//
//   sender PORT RATE COUNT WIDTH HEIGHT DEPTH SCALAR     (WIDTH 0: TRANSFORM; SCALAR: 3 uint8, 4 int16)
//
// The header's time stamp holds CLOCK_MONOTONIC, taken before packing. The number is the x of a TRANSFORM, or the first
// four bytes of an IMAGE, whose other bytes are all (37 * number) modulo 251. RATE 0: as fast as it can.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <time.h>

#include "igtlImageMessage.h"
#include "igtlOSUtil.h"
#include "igtlServerSocket.h"
#include "igtlTransformMessage.h"

static long long now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void sleep_until(long long ns) {
  timespec t = {(time_t)(ns / 1000000000LL), (long)(ns % 1000000000LL)};
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0);
}

int main(int, char** argv) {
  const int port = atoi(argv[1]), count = atoi(argv[3]);
  const double rate = atof(argv[2]);
  const int width = atoi(argv[4]), height = atoi(argv[5]), depth = atoi(argv[6]), scalar = atoi(argv[7]);
  igtl::ServerSocket::Pointer server = igtl::ServerSocket::New();
  if (server->CreateServer(port) < 0) return 1;
  printf("ready\n");
  fflush(stdout);
  igtl::Socket::Pointer client;
  while (client.IsNull()) client = server->WaitForConnection(1000);
  sleep_until(now_ns() + 500000000LL);

  igtl::TransformMessage::Pointer pose = igtl::TransformMessage::New();
  pose->SetDeviceName("NeedleToTracker");
  igtl::ImageMessage::Pointer image = igtl::ImageMessage::New();
  image->SetDeviceName("Image");
  if (width) {
    image->SetDimensions(width, height, depth);
    image->SetSpacing(1.0f, 1.0f, 1.0f);
    image->SetScalarType(scalar);
    image->SetEndian(igtl::ImageMessage::ENDIAN_LITTLE);
    image->AllocateScalars();
  }
  igtl::TimeStamp::Pointer stamp = igtl::TimeStamp::New();
  igtl::Matrix4x4 matrix;
  igtl::IdentityMatrix(matrix);
  if (width) image->SetMatrix(matrix);
  long long next = now_ns();
  for (int n = 0; n < count; n++) {
    if (width) {
      memset(image->GetScalarPointer(), (37 * n) % 251, image->GetImageSize());
      memcpy(image->GetScalarPointer(), &n, 4);
    }
    if (rate > 0) {
      next += (long long)(1e9 / rate);
      sleep_until(next);
    }
    const long long sent = now_ns();
    stamp->SetTime((igtlUint32)(sent / 1000000000LL), (igtlUint32)(sent % 1000000000LL));
    igtl::MessageBase* message;
    if (width) {
      image->SetTimeStamp(stamp);
      message = image;
    } else {
      matrix[0][3] = n;
      pose->SetMatrix(matrix);
      pose->SetTimeStamp(stamp);
      message = pose;
    }
    message->Pack();
    if (!client->Send(message->GetPackPointer(), message->GetPackSize())) return 2;
  }
  sleep_until(now_ns() + 500000000LL);
  return 0;
}
