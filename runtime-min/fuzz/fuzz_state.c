/* What a store holds in text: a byte that is 0 and a state, 1 and a time floor, or another one and the head of a
 * release.
 */
#include <stdlib.h>
#include <string.h>

#include "keys.h"

static ssize_t read_bytes(void *context, void *data, size_t size) {
  eb_bytes *left = context;
  size_t count = size < left->size ? size : left->size;
  if (count) memcpy(data, left->data, count);
  *left = (eb_bytes){(const uint8_t *)left->data + count, left->size - count};
  return (ssize_t)count;
}

/* Every change of a state that was accepted gives one that is accepted. */
static void change_state(struct eb_state *state) {
  static const char other[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
  char text[EB_STATE_BYTES_MAX];
  struct eb_state again;
  if (!eb_state_is_bad(state, other)) eb_state_install(state, other, 7, "0123456789ABCDEF");
  if (state->previous[0]) eb_state_roll_back(state, state->confirmed);
  if (state->said_count > 1) eb_state_forget_signer(state);
  eb_bytes bytes = {text, eb_state_text(state, text)};
  if (eb_state_parse(bytes, "fuzz", &again, NULL)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static struct eb_head head;
  eb_error error;
  if (size < 1) return 0;
  eb_bytes bytes = {data + 1, size - 1};
  if (data[0] == 0) {
    struct eb_state state;
    if (eb_state_parse(bytes, "fuzz", &state, &error) == EB_OK) change_state(&state);
    return 0;
  }
  if (data[0] == 1) {
    struct eb_floor floor;
    char text[256] = "";
    if (bytes.size < sizeof text) memcpy(text, bytes.data, bytes.size);
    if (bytes.size < sizeof text) eb_floor_parse(text, bytes.size, &floor);
    return 0;
  }
  eb_feed feed = {.read = read_bytes, .context = &bytes};
  if (eb_head_read(&head, &feed, false, &error) == EB_OK) eb_head_parse(&head, &error);
  return 0;
}
