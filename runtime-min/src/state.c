#include "state.h"

#include <stdio.h>
#include <string.h>

#include "reader.h"

#define NUMBER_MAX 0x7fffffffu
#define LOWER "abcdefghijklmnopqrstuvwxyz"
#define DIGITS "0123456789"

bool eb_is_id(const char *text) {
  return strlen(text) == EB_ID_TEXT - 1 && strspn(text, DIGITS "abcdef") == EB_ID_TEXT - 1;
}

bool eb_is_name(const char *text) {
  size_t length = strlen(text);
  return length >= 1 && length < EB_NAME_TEXT && strspn(text, LOWER DIGITS) >= 1 &&
         strspn(text, LOWER DIGITS "_-") == length;
}

/* The lines of a text, one value each: what a line's form leaves open (spaces, leading zeros, bytes behind the end)
 * shows when the whole is written again and compared. */
struct values {
  struct eb_reader reader;
  char line[EB_ID_TEXT + 16];
};

/* The value of the next line if its key is this one, else NULL and the line stays. */
static const char *next_value(struct values *values, const char *key) {
  struct eb_reader *reader = &values->reader;
  size_t length = strlen(key);
  const uint8_t *end = reader->left ? memchr(reader->at, '\n', reader->left) : NULL;
  size_t size = end ? (size_t)(end - reader->at) : 0;
  if (size <= length || size >= sizeof values->line) return NULL;
  if (memcmp(reader->at, key, length) != 0 || reader->at[length] != ' ') return NULL;
  memcpy(values->line, reader->at, size);
  values->line[size] = 0;
  eb_read_bytes(reader, size + 1);
  return values->line + length + 1;
}

static bool read_word(struct values *values, const char *key, bool (*valid)(const char *), char *word, size_t size) {
  const char *value = next_value(values, key);
  if (!value || !valid(value)) return false;
  snprintf(word, size, "%s", value);
  return true;
}

static bool read_number(struct values *values, const char *key, uint32_t max, uint32_t *number) {
  const char *value = next_value(values, key);
  uint64_t read = 0;
  if (!value || !*value) return false;
  for (; *value >= '0' && *value <= '9' && read <= max; value++) read = read * 10 + (uint64_t)(*value - '0');
  *number = (uint32_t)read;
  return !*value && read <= max;
}

static bool read_flag(struct values *values, const char *key, bool *flag) {
  const char *value = next_value(values, key);
  if (!value) return false;
  *flag = strcmp(value, "yes") == 0;
  return *flag || strcmp(value, "no") == 0;
}

static bool read_optional_id(struct values *values, const char *key, char id[EB_ID_TEXT], bool *present) {
  const char *value = next_value(values, key);
  *present = value != NULL;
  if (value && eb_is_id(value)) memcpy(id, value, EB_ID_TEXT);
  return !value || eb_is_id(value);
}

static bool is_signer(const char *text) {
  return strlen(text) == EB_SIGNER_TEXT - 1 && strspn(text, DIGITS "ABCDEF") == EB_SIGNER_TEXT - 1;
}

static uint32_t find_said(const struct eb_state *state, const char *signer) {
  uint32_t i = 0;
  while (i < state->said_count && strcmp(state->said[i].signer, signer) != 0) i++;
  return i;
}

/* `said SIGNER N`, each of another key, none larger than the one before it. */
static bool read_said(struct values *values, struct eb_state *state) {
  uint32_t most = state->floor;
  const char *value;
  while (state->said_count < EB_SAID_MAX && (value = next_value(values, "said"))) {
    struct eb_said said = {0};
    if (sscanf(value, "%16s %10u", said.signer, &said.number) != 2 || !is_signer(said.signer)) return false;
    if (said.number < 1 || said.number > most || strcmp(said.signer, state->signer) == 0) return false;
    if (find_said(state, said.signer) < state->said_count) return false;
    most = said.number;
    state->said[state->said_count++] = said;
  }
  return true;
}

static bool read_signers(struct values *values, struct eb_state *state) {
  const char *value = next_value(values, "signer");
  if (!value) return true;
  snprintf(state->signer, sizeof state->signer, "%s", value);
  return is_signer(value) && read_said(values, state);
}

static bool read_bad(struct values *values, struct eb_state *state) {
  bool more = true;
  while (more && state->bad_count < EB_BAD_MAX) {
    if (!read_optional_id(values, "bad", state->bad[state->bad_count], &more)) return false;
    if (more && eb_state_is_bad(state, state->bad[state->bad_count])) return false;
    state->bad_count += more;
  }
  return true;
}

/* What is said of a release that is installed. */
static bool read_current(struct values *values, struct eb_state *state) {
  bool has_previous;
  return read_flag(values, "confirmed", &state->confirmed) &&
         read_number(values, "crashes", EB_CRASHES_MAX, &state->crashes) &&
         read_optional_id(values, "previous", state->previous, &has_previous) &&
         strcmp(state->current, state->previous) != 0;
}

static bool read_state(eb_bytes text, struct eb_state *state) {
  struct values values = {.reader = eb_reader_of(text.data, text.size)};
  uint32_t version;
  bool has_current;
  return read_number(&values, "edgebuild-state", 1, &version) && version == 1 &&
         read_word(&values, "target", eb_is_name, state->target, sizeof state->target) &&
         read_number(&values, "floor", NUMBER_MAX, &state->floor) && state->floor >= 1 &&
         read_signers(&values, state) && read_optional_id(&values, "current", state->current, &has_current) &&
         (!has_current || read_current(&values, state)) && read_bad(&values, state) && values.reader.left == 0;
}

eb_status eb_state_parse(eb_bytes text, const char *name, struct eb_state *state, eb_error *error) {
  char again[EB_STATE_BYTES_MAX];
  memset(state, 0, sizeof *state);
  bool valid = read_state(text, state);
  if (valid && eb_state_text(state, again) == text.size && memcmp(again, text.data, text.size) == 0) return EB_OK;
  return eb_fail(error, EB_REFUSED, "remove this file and install the release again",
                 "functions/%s in the store is no state that edgebuild-run wrote", name);
}

size_t eb_state_text(const struct eb_state *state, char text[EB_STATE_BYTES_MAX]) {
  size_t size = (size_t)snprintf(text, EB_STATE_BYTES_MAX, "edgebuild-state 1\ntarget %s\nfloor %u\n", state->target,
                                 state->floor);
  if (state->signer[0]) size += (size_t)snprintf(text + size, EB_STATE_BYTES_MAX - size, "signer %s\n", state->signer);
  for (uint32_t i = 0; i < state->said_count; i++) {
    const struct eb_said *said = &state->said[i];
    size += (size_t)snprintf(text + size, EB_STATE_BYTES_MAX - size, "said %s %u\n", said->signer, said->number);
  }
  if (state->current[0]) {
    size += (size_t)snprintf(text + size, EB_STATE_BYTES_MAX - size, "current %s\nconfirmed %s\ncrashes %u\n",
                             state->current, state->confirmed ? "yes" : "no", state->crashes);
  }
  if (state->previous[0]) {
    size += (size_t)snprintf(text + size, EB_STATE_BYTES_MAX - size, "previous %s\n", state->previous);
  }
  for (uint32_t i = 0; i < state->bad_count; i++) {
    size += (size_t)snprintf(text + size, EB_STATE_BYTES_MAX - size, "bad %s\n", state->bad[i]);
  }
  return size;
}

bool eb_state_is_bad(const struct eb_state *state, const char *id) {
  for (uint32_t i = 0; i < state->bad_count; i++) {
    if (strcmp(state->bad[i], id) == 0) return true;
  }
  return false;
}

void eb_state_mark_bad(struct eb_state *state, const char *id) {
  if (eb_state_is_bad(state, id)) return;
  uint32_t kept = state->bad_count < EB_BAD_MAX ? state->bad_count : EB_BAD_MAX - 1;
  memmove(state->bad[1], state->bad[0], kept * sizeof *state->bad);
  memcpy(state->bad[0], id, EB_ID_TEXT);
  state->bad_count = kept + 1;
}

static void drop_said(struct eb_state *state, uint32_t index) {
  if (index >= state->said_count) return;
  state->said_count--;
  memmove(&state->said[index], &state->said[index + 1], (state->said_count - index) * sizeof *state->said);
}

/* What another key said before stays behind it: it counts again when this one leaves. */
static void raise_floor(struct eb_state *state, uint32_t release, const char *signer) {
  if (state->signer[0] && strcmp(state->signer, signer) != 0) {
    drop_said(state, find_said(state, signer));
    drop_said(state, EB_SAID_MAX - 1);
    memmove(&state->said[1], &state->said[0], state->said_count * sizeof *state->said);
    state->said[0].number = state->floor;
    memcpy(state->said[0].signer, state->signer, sizeof state->signer);
    state->said_count++;
  }
  state->floor = release;
  snprintf(state->signer, sizeof state->signer, "%s", signer);
}

void eb_state_forget_signer(struct eb_state *state) {
  struct eb_said next = {.number = 1};
  if (state->said_count) next = state->said[0];
  state->floor = next.number;
  memcpy(state->signer, next.signer, sizeof state->signer);
  drop_said(state, 0);
}

void eb_state_install(struct eb_state *state, const char *id, uint32_t release, const char *signer) {
  if (release >= state->floor) raise_floor(state, release, signer);
  if (strcmp(state->current, id) == 0) return;
  /* What has given no result is nothing to go back to where there is something else. */
  bool keeps = !state->confirmed && state->previous[0] && strcmp(state->previous, id) != 0;
  if (!keeps) memcpy(state->previous, state->current, EB_ID_TEXT);
  memcpy(state->current, id, EB_ID_TEXT);
  state->confirmed = false;
  state->crashes = 0;
}

void eb_state_roll_back(struct eb_state *state, bool bad) {
  char left[EB_ID_TEXT];
  memcpy(left, state->current, EB_ID_TEXT);
  memcpy(state->current, state->previous, EB_ID_TEXT);
  if (bad) {
    eb_state_mark_bad(state, left);
    state->previous[0] = 0;
  } else {
    memcpy(state->previous, left, EB_ID_TEXT);
  }
  state->confirmed = true;
  state->crashes = 0;
}
