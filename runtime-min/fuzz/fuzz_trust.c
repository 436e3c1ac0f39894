/* Two bytes of length, a trust file of that length, then the one that is to follow it. */
#include <stdlib.h>

#include "date.h"
#include "trust.h"

static void require(bool holds) {
  if (!holds) abort();
}

/* What was opened keeps SPEC 4's promises. */
static void check(const struct eb_trust *trust) {
  char text[11];
  uint32_t date;
  require(trust->release_count >= 1);
  if (!trust->version) return;
  require(trust->root_threshold >= 1 && trust->root_threshold <= trust->root_count);
  require(trust->root_count <= EB_ROOTS_MAX && trust->release_count <= EB_RELEASE_KEYS_MAX);
  require(trust->expires > trust->made);
  eb_date_text(trust->expires, text);
  require(eb_date_parse((eb_bytes){text, 10}, &date) && date == trust->expires);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static struct eb_trust old, next;
  if (size < 2) return 0;
  size_t first = data[0] | (size_t)data[1] << 8;
  if (first > size - 2) return 0;
  eb_error error;
  bool known = eb_trust_open((eb_bytes){data + 2, first}, &old, &error) == EB_OK;
  if (known) check(&old);
  if (eb_trust_open((eb_bytes){data + 2 + first, size - 2 - first}, &next, &error)) return 0;
  check(&next);
  if (known) eb_trust_follows(&old, &next, &error);
  return 0;
}
