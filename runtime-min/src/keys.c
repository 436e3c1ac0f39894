#include "keys.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "date.h"

#define TIME_BYTES 40u

static const char time_form[] = "edgebuild-time 1\nfloor %s\n";
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

static bool lists(eb_bytes file, const uint8_t id[EB_KEY_ID_BYTES]) {
  struct eb_trust trust;
  if (eb_trust_open(file, &trust, NULL)) return false;
  for (uint32_t i = 0; i < trust.release_count; i++) {
    if (memcmp(trust.release[i].id, id, EB_KEY_ID_BYTES) == 0) return true;
  }
  return false;
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
  for (uint32_t i = 0; !status && found && i < trust.release_count; i++) {
    char id[17];
    eb_key_id_text(trust.release[i].id, id);
    if (strcmp(id, signer) == 0) *lists_it = true;
  }
  eb_arena_close(&memory);
  return status;
}

eb_status eb_keys_floor(const struct eb_store *store, uint32_t *floor, eb_error *error) {
  char text[TIME_BYTES + 1], again[TIME_BYTES + 1], date[11];
  size_t size;
  bool found;
  *floor = 0;
  eb_status status = eb_disk_read(&store->root, "time", text, TIME_BYTES, &size, &found, error);
  if (status || !found) return status;
  size_t at = strlen(time_form) - strlen("%s\n");
  if (size == at + 11 && eb_date_parse((eb_bytes){text + at, 10}, floor)) {
    eb_date_text(*floor, date);
    snprintf(again, sizeof again, time_form, date);
    if (memcmp(again, text, size) == 0) return EB_OK;
  }
  return eb_fail(error, EB_REFUSED, "remove this file; the next release that is installed writes it again",
                 "`time` in the store is not what edgebuild-run wrote");
}

static uint32_t later(uint32_t a, uint32_t b) {
  return a > b ? a : b;
}

/* The system's clock; 0 where it stands before all dates of this format. */
static uint32_t today(void) {
  time_t now = time(NULL);
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

eb_status eb_keys_expiry(const struct eb_store *store, const struct eb_keys *keys, const char *what, uint32_t made,
                         uint32_t expires, eb_error *error) {
  struct eb_trust trust;
  uint32_t floor;
  eb_status status = eb_keys_floor(store, &floor, error);
  if (!status) status = eb_trust_open(keys->file, &trust, error);
  if (status) return status;
  uint32_t now = later(later(today(), floor), later(trust.made, made));
  if (trust.version && now >= trust.expires) return expired("the trust file", trust.expires, now, error);
  return expires && now >= expires ? expired(what, expires, now, error) : EB_OK;
}

static eb_status raise_floor(const struct eb_store *store, uint32_t date, eb_error *error) {
  char text[TIME_BYTES + 1], day[11];
  uint32_t floor;
  eb_status status = eb_keys_floor(store, &floor, error);
  if (status || date <= floor) return status;
  eb_date_text(date, day);
  int size = snprintf(text, sizeof text, time_form, day);
  return eb_disk_put(&store->root, "time", (eb_bytes){text, (size_t)size}, 0600, error);
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

eb_status eb_keys_accept(const struct eb_store *store, const struct eb_keys *keys, uint32_t made, eb_error *error) {
  struct eb_trust trust;
  eb_status status = eb_trust_open(keys->file, &trust, error);
  if (!status) status = raise_floor(store, later(trust.made, made), error);
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
  return status ? status : eb_keys_accept(store, keys, 0, error);
}
