#include "keys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "date.h"

#define TIME_BYTES 160u

static const char nothing_known[] = "give --trust FILE, or write ~/.config/edgebuild/trust with: edgebuild keys show";

static eb_status read_stored(const struct eb_store *store, struct eb_keys *keys, eb_error *error) {
  return eb_disk_read(&store->root, "trust", keys->stored, EB_TRUST_BYTES_MAX, &keys->stored_size, &keys->is_stored,
                      error);
}

static eb_bytes stored_file(const struct eb_keys *keys) {
  return (eb_bytes){keys->stored, keys->stored_size};
}

static eb_bytes given_file(const struct eb_keys *keys) {
  return (eb_bytes){keys->given, keys->given_size};
}

/* Which of the two counts. Both were opened. */
static eb_status compare(struct eb_keys *keys, const struct eb_trust *stored, const struct eb_trust *given,
                         eb_error *error) {
  if (!given->version) {
    return eb_fail(error, EB_REFUSED, "give a trust file with roles, or none",
                   "the store follows a trust file with roles; a plain list of keys does not take its place");
  }
  keys->file = stored_file(keys);
  if (given->version < stored->version) return EB_OK;
  eb_status status = eb_trust_follows(stored, given, error);
  if (!status) keys->file = given_file(keys);
  return status;
}

static eb_status damaged(eb_status status, eb_error *error) {
  return eb_fail(error, status, "put the newest trust file of this device in its place; who wrote there?",
                 "`trust` in the store is not what edgebuild-run wrote");
}

static eb_status choose(const struct eb_store *store, struct eb_keys *keys, eb_error *error) {
  struct eb_trust stored, given;
  eb_status status = read_stored(store, keys, error);
  if (status) return status;
  if (!keys->is_stored && !keys->is_given) {
    return eb_fail(error, EB_REFUSED, nothing_known, "there is no trust file, so no bundle can be verified");
  }
  keys->file = keys->is_stored ? stored_file(keys) : given_file(keys);
  if (!keys->is_stored) return EB_OK;
  status = eb_trust_open(stored_file(keys), &stored, NULL);
  if (status) return damaged(status, error);
  if (!keys->is_given) return EB_OK;
  status = eb_trust_open(given_file(keys), &given, error);
  return status ? status : compare(keys, &stored, &given, error);
}

eb_status eb_keys_to_install(const struct eb_store *store, struct eb_keys *keys, eb_error *error) {
  return choose(store, keys, error);
}

static bool lists_signer(const struct eb_trust *trust, const char *signer) {
  for (uint32_t i = 0; i < trust->release_count; i++) {
    char id[17];
    eb_key_id_text(trust->release[i].id, id);
    if (strcmp(id, signer) == 0) return true;
  }
  return false;
}

static bool lists(eb_bytes file, const uint8_t id[EB_KEY_ID_BYTES]) {
  struct eb_trust trust;
  char signer[EB_SIGNER_TEXT];
  if (eb_trust_open(file, &trust, NULL)) return false;
  eb_key_id_text(id, signer);
  return lists_signer(&trust, signer);
}

/* Looking for a key in the trust files that were accepted before. */
struct search {
  const struct eb_store *store;
  struct eb_keys *keys;
  const uint8_t *id;
};

static eb_status visit_older(void *context, const char *name, eb_error *error) {
  struct search *search = context;
  struct eb_keys *keys = search->keys;
  size_t size;
  bool found;
  (void)error;
  if (keys->file.data == keys->older || strncmp(name, EB_NEW, strlen(EB_NEW)) == 0) return EB_OK;
  if (eb_disk_read(&search->store->trusts, name, keys->older, EB_TRUST_BYTES_MAX, &size, &found, NULL)) return EB_OK;
  eb_bytes file = {keys->older, size};
  if (found && lists(file, search->id)) keys->file = file;
  return EB_OK;
}

/* The signer that a head names; whether it did sign is seen when the head is verified. */
static eb_status signer_of(const struct eb_store *store, const char *id, struct eb_signature *signature,
                           eb_error *error) {
  struct eb_arena memory;
  eb_status status = eb_arena_open(&memory, sizeof(struct eb_head), error);
  if (status) return status;
  struct eb_head *head = eb_arena_take(&memory, sizeof *head);
  status = eb_store_head(store, id, head, error);
  if (!status) status = eb_signature_parse((eb_bytes){head->signature_text, head->signature_size}, signature, error);
  signature->comment = (eb_bytes){NULL, 0};
  eb_arena_close(&memory);
  return status;
}

eb_status eb_keys_to_run(const struct eb_store *store, struct eb_keys *keys, const char *id, eb_error *error) {
  struct eb_signature signature;
  eb_status status = choose(store, keys, error);
  if (status && keys->is_stored) {
    struct eb_trust stored;
    bool counts = eb_trust_open(stored_file(keys), &stored, NULL) == EB_OK || !keys->is_given;
    keys->file = counts ? stored_file(keys) : given_file(keys);
    status = EB_OK;
  }
  if (status || !keys->is_stored) return status;
  status = signer_of(store, id, &signature, error);
  if (status || lists(keys->file, signature.key_id)) return status;
  /* A newer file may have been given before anything was installed under it. */
  if (lists(stored_file(keys), signature.key_id)) {
    keys->file = stored_file(keys);
    return EB_OK;
  }
  struct search search = {store, keys, signature.key_id};
  return eb_disk_list(&store->trusts, visit_older, &search, error);
}

static size_t floor_text(const struct eb_floor *floor, char text[TIME_BYTES + 1]) {
  char date[11];
  eb_date_text(floor->date, date);
  int size = floor->name[0] ? snprintf(text, TIME_BYTES + 1, "edgebuild-time 1\nfloor %s\nby %s %u %s\n", date,
                                       floor->name, floor->number, floor->signer)
                            : snprintf(text, TIME_BYTES + 1, "edgebuild-time 1\nfloor %s\n", date);
  return (size_t)size;
}

/* What the lines leave open shows when they are written again and compared. */
bool eb_floor_parse(const char *text, size_t size, struct eb_floor *floor) {
  char date[11] = "", signer[EB_SIGNER_TEXT] = "", again[TIME_BYTES + 1];
  memset(floor, 0, sizeof *floor);
  int found = sscanf(text, "edgebuild-time 1 floor %10s by %64s %10u %16s", date, floor->name, &floor->number, signer);
  memcpy(floor->signer, signer, sizeof signer);
  bool whole = found == 1 || (found == 4 && eb_is_name(floor->name) && strlen(signer) == EB_SIGNER_TEXT - 1);
  return whole && eb_date_parse((eb_bytes){date, strlen(date)}, &floor->date) && floor_text(floor, again) == size &&
         memcmp(again, text, size) == 0;
}

eb_status eb_keys_floor(const struct eb_store *store, struct eb_floor *floor, eb_error *error) {
  char text[TIME_BYTES + 1];
  size_t size;
  bool found;
  memset(floor, 0, sizeof *floor);
  eb_status status = eb_disk_read(&store->root, "time", text, TIME_BYTES, &size, &found, error);
  if (status || !found) return status;
  text[size] = 0;
  if (eb_floor_parse(text, size, floor)) return EB_OK;
  return eb_fail(error, EB_REFUSED, "remove this file; the next release that is installed writes it again",
                 "`time` in the store is not what edgebuild-run wrote");
}

static uint32_t later(uint32_t a, uint32_t b) {
  return a > b ? a : b;
}

/* The system's clock; 0 where it stands before all dates of this format. */
static uint32_t today(void) {
  time_t now = time(NULL);
#ifdef EB_TEST_HOOKS
  const char *other = getenv("EDGEBUILD_TEST_NOW");
  if (other) now = (time_t)strtoll(other, NULL, 10);
#endif
  struct tm date;
  if (!gmtime_r(&now, &date) || date.tm_year < 100 || date.tm_year > 8099) return 0;
  return (uint32_t)(date.tm_year + 1900) * 10000 + (uint32_t)(date.tm_mon + 1) * 100 + (uint32_t)date.tm_mday;
}

static eb_status expired(const char *what, uint32_t expires, uint32_t now, eb_error *error) {
  char end[11], day[11];
  eb_date_text(expires, end);
  eb_date_text(now, day);
  return eb_fail(error, EB_REFUSED, "get a newer one; if the date is wrong, set the clock of this device",
                 "%s expired on %s; today is %s or later", what, end, day);
}

/* What a key said that has left counts no more; nor does what a release said behind which the same name has a later
 * one: no single release, signed by mistake or by a thief, makes all that come after it expired. */
static bool counts(const struct eb_floor *floor, const struct eb_trust *trust, const struct eb_dated *dated) {
  if (!floor->name[0]) return true;
  if (!lists_signer(trust, floor->signer)) return false;
  return !dated->made || dated->number <= floor->number || strcmp(floor->name, dated->name) != 0;
}

static eb_status open_floor(const struct eb_store *store, const struct eb_keys *keys, const struct eb_dated *dated,
                            struct eb_trust *trust, struct eb_floor *floor, eb_error *error) {
  eb_status status = eb_keys_floor(store, floor, error);
  if (!status) status = eb_trust_open(keys->file, trust, error);
  if (!status && !counts(floor, trust, dated)) *floor = (struct eb_floor){0};
  return status;
}

eb_status eb_keys_expiry(const struct eb_store *store, const struct eb_keys *keys, const char *what,
                         const struct eb_dated *dated, eb_error *error) {
  struct eb_trust trust;
  struct eb_floor floor;
  eb_status status = open_floor(store, keys, dated, &trust, &floor, error);
  if (status) return status;
  uint32_t now = later(later(today(), floor.date), later(trust.made, dated->made));
  if (trust.version && now >= trust.expires) return expired("the trust file", trust.expires, now, error);
  return dated->expires && now >= dated->expires ? expired(what, dated->expires, now, error) : EB_OK;
}

static eb_status raise_floor(const struct eb_store *store, const struct eb_keys *keys, const struct eb_dated *dated,
                             struct eb_trust *trust, eb_error *error) {
  char text[TIME_BYTES + 1], before[TIME_BYTES + 1];
  struct eb_floor floor, raw;
  eb_status status = open_floor(store, keys, dated, trust, &floor, error);
  if (!status) status = eb_keys_floor(store, &raw, error);
  if (status) return status;
  if (dated->made > floor.date) {
    floor = (struct eb_floor){.date = dated->made, .number = dated->number};
    snprintf(floor.name, sizeof floor.name, "%s", dated->name);
    snprintf(floor.signer, sizeof floor.signer, "%s", dated->signer);
  }
  if (trust->made >= floor.date) floor = (struct eb_floor){.date = trust->made};
  size_t size = floor.date ? floor_text(&floor, text) : 0;
  bool same = raw.date && floor_text(&raw, before) == size && memcmp(text, before, size) == 0;
  return same || !size ? EB_OK : eb_disk_put(&store->root, "time", (eb_bytes){text, size}, 0600, error);
}

eb_status eb_keys_lists(const struct eb_store *store, const char signer[17], bool *lists_it, eb_error *error) {
  struct eb_arena memory;
  struct eb_trust trust;
  size_t size;
  bool found;
  eb_status status = eb_arena_open(&memory, EB_TRUST_BYTES_MAX + 1, error);
  if (status) return status;
  status = eb_disk_read(&store->root, "trust", memory.base, EB_TRUST_BYTES_MAX, &size, &found, error);
  *lists_it = !status && !found;
  if (found && !status) status = eb_trust_open((eb_bytes){memory.base, size}, &trust, error);
  if (found && !status) *lists_it = lists_signer(&trust, signer);
  eb_arena_close(&memory);
  return status;
}

void eb_keys_forget(const struct eb_keys *keys, struct eb_state *state) {
  struct eb_trust trust;
  if (eb_trust_open(keys->file, &trust, NULL)) return;
  while (state->signer[0] && !lists_signer(&trust, state->signer)) eb_state_forget_signer(state);
}

/* What the former one allowed may run on: it stays among the older ones as long as a release needs it. */
static eb_status replace_trust(const struct eb_store *store, const struct eb_keys *keys, eb_error *error) {
  struct eb_trust former;
  char name[16];
  eb_status status = EB_OK;
  if (keys->is_stored) {
    status = eb_trust_open(stored_file(keys), &former, error);
    if (status) return status;
    snprintf(name, sizeof name, "%u", former.version);
    status = eb_disk_put(&store->trusts, name, stored_file(keys), 0600, error);
  }
  return status ? status : eb_disk_put(&store->root, "trust", keys->file, 0600, error);
}

eb_status eb_keys_accept(const struct eb_store *store, const struct eb_keys *keys, const struct eb_dated *dated,
                         eb_error *error) {
  struct eb_trust trust;
  eb_status status = raise_floor(store, keys, dated, &trust, error);
  if (status || !trust.version || keys->file.data == keys->stored) return status;
  bool same = keys->is_stored && keys->file.size == keys->stored_size &&
              memcmp(keys->file.data, keys->stored, keys->stored_size) == 0;
  return same ? EB_OK : replace_trust(store, keys, error);
}

eb_status eb_keys_follow(const struct eb_store *store, struct eb_keys *keys, eb_bytes file, eb_error *error) {
  struct eb_trust current, next;
  eb_status status = eb_keys_to_install(store, keys, error);
  if (!status) status = eb_trust_open(keys->file, &current, error);
  if (!status) status = eb_trust_open(file, &next, error);
  if (status) return status;
  if (!current.version || !next.version) {
    return eb_fail(error, EB_REFUSED, "give this device a trust file with roles, once, by hand: --trust FILE",
                   "a plain list of keys is never replaced from outside");
  }
  status = eb_trust_follows(&current, &next, error);
  if (status) return status;
  memcpy(keys->given, file.data, file.size);
  keys->given_size = file.size;
  keys->is_given = true;
  status = eb_keys_to_install(store, keys, error);
  static const struct eb_dated nothing = {.name = ""};
  return status ? status : eb_keys_accept(store, keys, &nothing, error);
}
