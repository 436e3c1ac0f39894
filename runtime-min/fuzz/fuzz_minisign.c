/* Two bytes of length, a trust file of that length, then a signature over the message "m". */
#include "trust.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2) return 0;
  size_t trust_size = data[0] | (size_t)data[1] << 8;
  if (trust_size > size - 2) return 0;
  eb_bytes file = {data + 2, trust_size}, text = {data + 2 + trust_size, size - 2 - trust_size};
  struct eb_signature signature = {0};
  static struct eb_trust trust;
  eb_error error;
  if (eb_signature_parse(text, &signature, &error)) signature = (struct eb_signature){.comment = {data, 0}};
  if (eb_trust_open(file, &trust, &error) == EB_OK) eb_signature_verify(&signature, (eb_bytes){"m", 1}, &trust, &error);
  return 0;
}
