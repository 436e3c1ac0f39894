#include "commands.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "date.h"
#include "feed.h"
#include "follow.h"
#include "supervise.h"
#include "trust_file.h"

#define ARGUMENTS_MAX 256
#define SHORT_ID 12 /* characters of an ID that a table shows */

/* The store, and the keys that it is used with. */
struct opened {
  struct eb_store store;
  char path[EB_PATH_MAX]; /* of the trust file; empty: none is given */
  struct eb_keys keys;
};

const char *eb_store_path(const struct eb_options *options) {
  const char *variable = getenv("EDGEBUILD_STORE");
  return options->store ? options->store : variable && *variable ? variable : "/var/lib/edgebuild";
}

static eb_status read_trust(const struct eb_commands *commands, struct opened *opened, eb_error *error) {
  eb_trust_file_find(commands->options->trust, opened->path);
  opened->keys.is_given = opened->path[0] != 0;
  if (!opened->keys.is_given) return EB_OK;
  return eb_trust_file_read(opened->path, opened->keys.given, &opened->keys.given_size, error);
}

static void print_members(struct eb_json *out, const struct eb_head *head) {
  const struct eb_manifest *manifest = &head->manifest;
  eb_json_print(out,
                "\"name\":\"%s\",\"version\":\"%s\",\"target\":\"%s\",\"release\":%u,\"signer\":\"%s\",\"id\":\"%s\"",
                manifest->name, manifest->version, manifest->target, manifest->release, head->signer, head->id);
}

static void report_install(const struct eb_commands *commands, const struct eb_install *install) {
  const struct eb_manifest *manifest = &install->head->manifest;
  const char *previous = install->current ? "" : install->state.previous;
  struct eb_json *out = commands->out;
  if (!commands->options->json) {
    eb_json_print(out, "%s: %s %s for %s, release %u, signed by %s\n",
                  install->complete ? "already installed" : "installed", manifest->name, manifest->version,
                  manifest->target, manifest->release, install->head->signer);
    eb_json_print(out, "%llu bytes written, %llu were here; %u blobs of old releases removed (%llu bytes)\n",
                  (unsigned long long)install->written, (unsigned long long)install->kept, install->removed.blobs,
                  (unsigned long long)install->removed.bytes);
    return;
  }
  eb_json_print(out, "{\"installed\":true,\"already\":%s,", install->complete ? "true" : "false");
  print_members(out, install->head);
  eb_json_print(out, ",\"previous\":%s%s%s", *previous ? "\"" : "null", previous, *previous ? "\"" : "");
  eb_json_print(out, ",\"bytes_written\":%llu,\"bytes_kept\":%llu,\"files_written\":%u,\"blobs_removed\":%u}\n",
                (unsigned long long)install->written, (unsigned long long)install->kept, install->files_written,
                install->removed.blobs);
}

static eb_status open_input(const char *operand, int *fd, eb_error *error) {
  bool standard = strcmp(operand, "-") == 0;
  *fd = standard ? STDIN_FILENO : open(operand, O_RDONLY | O_CLOEXEC);
  if (*fd >= 0) return EB_OK;
  return eb_fail(error, EB_IO, EB_HINT_PATH, "cannot open %s: %s", operand, strerror(errno));
}

/* Once more from the start where that may help and the source can. */
static eb_status install_from(struct eb_install *work, int fd, eb_error *error) {
  off_t start = lseek(fd, 0, SEEK_CUR);
  eb_status status;
  do {
    eb_feed feed = eb_feed_of_fd(fd);
    status = eb_install_feed(work, &feed, error);
  } while (status && work->stale && start >= 0 && lseek(fd, start, SEEK_SET) == start);
  return status;
}

static eb_status install(struct eb_commands *commands, struct opened *opened, eb_error *error) {
  struct eb_install work = {.store = &opened->store, .cpu = &commands->cpu};
  int fd = -1;
  eb_status status = read_trust(commands, opened, error);
  if (!status) status = open_input(commands->options->operand, &fd, error);
  if (!status) status = eb_store_open(&opened->store, eb_store_path(commands->options), true, &commands->cpu, error);
  if (!status) status = eb_store_lock(&opened->store, error);
  if (!status) status = eb_install_open(&work, error);
  if (status) return status;
  work.keys = &opened->keys;
  work.trust_path = opened->path[0] ? opened->path : NULL;
  status = install_from(&work, fd, error);
  if (fd != STDIN_FILENO) close(fd);
  if (!status) report_install(commands, &work);
  if (!status && work.warning.status) {
    eb_json_print(commands->err, "warning: nothing old was removed: %s\n", work.warning.message);
  }
  eb_install_close(&work);
  return status;
}

static eb_status collect(struct eb_commands *commands, struct opened *opened, eb_error *error) {
  struct eb_gc_result result;
  eb_status status = eb_store_open(&opened->store, eb_store_path(commands->options), false, &commands->cpu, error);
  if (!status) status = eb_store_lock(&opened->store, error);
  if (!status) status = eb_gc(&opened->store, &result, error);
  if (status) return status;
  eb_json_print(
      commands->out,
      commands->options->json
          ? "{\"releases_removed\":%u,\"blobs_removed\":%u,\"bytes_removed\":%llu,\"blobs\":%u,\"bytes\":%llu}\n"
          : "removed: %u releases, %u blobs, %llu bytes; kept: %u blobs, %llu bytes\n",
      result.releases, result.blobs, (unsigned long long)result.bytes, result.kept_blobs,
      (unsigned long long)result.kept_bytes);
  return EB_OK;
}

/* A release that would not run must not become the current one: its signature and every file's hash are looked at. */
static eb_status verify_release(struct opened *opened, const char *id, eb_error *error) {
  eb_files files = eb_store_files(&opened->store, id);
  eb_feed feed;
  eb_model *model;
  int fd;
  eb_status status = eb_keys_to_run(&opened->store, &opened->keys, id, error);
  if (!status) status = eb_store_head_feed(&opened->store, id, &fd, &feed, error);
  if (status) return status;
  status = eb_verify(&feed, &files, opened->keys.file, &model, error);
  close(fd);
  if (!status) eb_free(model);
  return status;
}

static eb_status begin_rollback(struct eb_commands *commands, struct opened *opened, struct eb_state *state,
                                eb_error *error) {
  const char *name = commands->options->operand;
  bool found;
  eb_status status = eb_store_state_begin(&opened->store, name, state, &found, error);
  if (status) return status;
  if (!found) {
    status = eb_fail(error, EB_INPUT, "edgebuild-run status lists the names",
                     "nothing is installed as %s in the store %s", name, opened->store.path);
  } else if (!state->previous[0]) {
    status = eb_fail(error, EB_INPUT, "install another release; the one that is current now is kept then",
                     "there is no previous release of %s to go back to", name);
  } else {
    status = verify_release(opened, state->previous, error);
  }
  if (status) eb_store_state_end(&opened->store, name, NULL, NULL);
  return status;
}

static eb_status roll_back(struct eb_commands *commands, struct opened *opened, eb_error *error) {
  const char *name = commands->options->operand;
  struct eb_state state;
  eb_status status = read_trust(commands, opened, error);
  if (!status) status = eb_store_open(&opened->store, eb_store_path(commands->options), false, &commands->cpu, error);
  if (!status) status = begin_rollback(commands, opened, &state, error);
  if (status) return status;
  char from[EB_ID_TEXT];
  memcpy(from, state.current, EB_ID_TEXT);
  eb_state_roll_back(&state, commands->options->bad);
  status = eb_store_state_end(&opened->store, name, &state, error);
  if (status) return status;
  eb_json_print(commands->out,
                commands->options->json
                    ? "{\"rolled_back\":true,\"name\":\"%s\",\"from\":\"%s\",\"id\":\"%s\",\"bad\":%s}\n"
                    : "%s: rolled back from %.12s to %.12s%s\n",
                name, from, state.current,
                commands->options->json ? (commands->options->bad ? "true" : "false")
                                        : (commands->options->bad ? ", the former is marked bad" : ""));
  return EB_OK;
}

/* One row of the status. */
struct row {
  struct eb_state state;
  struct eb_head *head;
  eb_status damaged; /* the head of the current release cannot be read */
  eb_error error;
};

static void print_row(const struct eb_commands *commands, const char *name, const struct row *row) {
  const struct eb_state *state = &row->state;
  const struct eb_manifest *manifest = &row->head->manifest;
  const char *version = row->damaged ? "damaged" : manifest->version, *signer = row->damaged ? "-" : row->head->signer;
  eb_json_print(commands->out, "%-20s %-12s %7u %-16s %-9s %7u %7u %3u %-12.*s %-12.*s %s\n", name, version,
                row->damaged ? 0 : manifest->release, state->target, state->confirmed ? "yes" : "no", state->crashes,
                state->floor, state->bad_count, SHORT_ID, state->current, SHORT_ID,
                state->previous[0] ? state->previous : "-", signer);
}

static void print_json_row(const struct eb_commands *commands, const char *name, const struct row *row) {
  const struct eb_state *state = &row->state;
  const struct eb_manifest *manifest = &row->head->manifest;
  struct eb_json *out = commands->out;
  eb_json_print(out, "{\"name\":\"%s\",\"target\":\"%s\",\"id\":\"%s\",\"damaged\":%s", name, state->target,
                state->current, row->damaged ? "true" : "false");
  if (!row->damaged) {
    eb_json_print(out, ",\"version\":\"%s\",\"release\":%u,\"signer\":\"%s\"", manifest->version, manifest->release,
                  row->head->signer);
  }
  eb_json_print(out, ",\"confirmed\":%s,\"crashes\":%u,\"floor\":%u,\"previous\":%s%s%s,\"bad\":[",
                state->confirmed ? "true" : "false", state->crashes, state->floor, state->previous[0] ? "\"" : "null",
                state->previous, state->previous[0] ? "\"" : "");
  for (uint32_t i = 0; i < state->bad_count; i++) eb_json_print(out, i ? ",\"%s\"" : "\"%s\"", state->bad[i]);
  eb_json_print(out, "]}");
}

/* The names of functions, in order: the next one behind `after`. */
struct next_name {
  const char *after;
  char name[EB_NAME_TEXT];
};

static eb_status visit_name(void *context, const char *name, eb_error *error) {
  struct next_name *next = context;
  (void)error;
  if (!eb_is_name(name) || strcmp(name, next->after) <= 0) return EB_OK;
  if (!next->name[0] || strcmp(name, next->name) < 0) memcpy(next->name, name, strlen(name) + 1);
  return EB_OK;
}

static eb_status read_row(const struct opened *opened, const char *name, struct row *row, bool *found,
                          eb_error *error) {
  eb_status status = eb_store_state(&opened->store, name, &row->state, found, error);
  if (status || !*found) return status;
  row->damaged = eb_store_head(&opened->store, row->state.current, row->head, &row->error);
  if (!row->damaged) row->damaged = eb_head_parse(row->head, &row->error);
  return EB_OK;
}

static eb_status print_rows(const struct eb_commands *commands, const struct opened *opened, struct row *row,
                            eb_error *error) {
  const char *wanted = commands->options->operand;
  char after[EB_NAME_TEXT] = "";
  uint32_t count = 0;
  for (;;) {
    struct next_name next = {.after = after};
    bool found;
    eb_status status = eb_disk_list(&opened->store.functions, visit_name, &next, error);
    if (status || !next.name[0]) return status;
    memcpy(after, next.name, sizeof after);
    if (wanted && strcmp(wanted, after) != 0) continue;
    status = read_row(opened, after, row, &found, error);
    if (status) return status;
    if (!found) continue;
    if (commands->options->json && count) eb_json_print(commands->out, ",");
    (commands->options->json ? print_json_row : print_row)(commands, after, row);
    count++;
  }
}

struct blobs {
  const struct eb_folder *folder;
  uint32_t count;
  uint64_t bytes;
};

static eb_status visit_blob(void *context, const char *name, eb_error *error) {
  struct blobs *blobs = context;
  int fd;
  uint64_t size;
  eb_status status = eb_disk_open(blobs->folder, name, &fd, &size, error);
  if (status == EB_REFUSED) return EB_OK;
  if (status || fd < 0) return status;
  close(fd);
  blobs->count++;
  blobs->bytes += size;
  return EB_OK;
}

static eb_status check_wanted(const struct eb_commands *commands, const struct opened *opened, eb_error *error) {
  const char *wanted = commands->options->operand;
  struct eb_state state;
  bool found = true;
  eb_status status = wanted ? eb_store_state(&opened->store, wanted, &state, &found, error) : EB_OK;
  if (status || found) return status;
  return eb_fail(error, EB_INPUT, "edgebuild-run status lists the names", "nothing is installed as %s in the store %s",
                 wanted, opened->store.path);
}

/* The time floor, where there is one. */
static void print_floor(const struct eb_commands *commands, const struct opened *opened) {
  struct eb_floor floor;
  char date[11];
  bool known = eb_keys_floor(&opened->store, &floor, NULL) == EB_OK && floor.date;
  if (known) eb_date_text(floor.date, date);
  if (commands->options->json) {
    eb_json_print(commands->out, ",\"time_floor\":%s%s%s", known ? "\"" : "null", known ? date : "", known ? "\"" : "");
  } else if (known) {
    eb_json_print(commands->out, ", time floor %s", date);
  }
}

static eb_status print_status(const struct eb_commands *commands, const struct opened *opened, struct row *row,
                              eb_error *error) {
  struct eb_json *out = commands->out;
  struct blobs blobs = {.folder = &opened->store.blobs};
  eb_status status = eb_disk_list(blobs.folder, visit_blob, &blobs, error);
  if (status) return status;
  if (commands->options->json) {
    eb_json_print(out, "{\"store\":");
    eb_json_string(out, opened->store.path);
    print_floor(commands, opened);
    eb_json_print(out, ",\"blobs\":%u,\"bytes\":%llu,\"functions\":[", blobs.count, (unsigned long long)blobs.bytes);
    status = print_rows(commands, opened, row, error);
    eb_json_print(out, "]}\n");
    return status;
  }
  eb_json_print(out, "%-20s %-12s %7s %-16s %-9s %7s %7s %3s %-12s %-12s %s\n", "NAME", "VERSION", "RELEASE", "TARGET",
                "CONFIRMED", "CRASHES", "FLOOR", "BAD", "CURRENT", "PREVIOUS", "SIGNER");
  status = print_rows(commands, opened, row, error);
  eb_json_print(out, "%u blobs, %llu bytes", blobs.count, (unsigned long long)blobs.bytes);
  print_floor(commands, opened);
  eb_json_print(out, "\n");
  return status;
}

static eb_status show_status(struct eb_commands *commands, struct opened *opened, eb_error *error) {
  struct eb_arena memory;
  struct row row;
  eb_status status = eb_store_open(&opened->store, eb_store_path(commands->options), false, &commands->cpu, error);
  if (!status) status = check_wanted(commands, opened, error);
  if (!status) status = eb_arena_open(&memory, sizeof *row.head, error);
  if (status) return status;
  row.head = eb_arena_take(&memory, sizeof *row.head);
  status = print_status(commands, opened, &row, error);
  eb_arena_close(&memory);
  return status;
}

static void tell_rollback(void *context, const char *from, const char *to) {
  const struct eb_commands *commands = context;
  eb_json_print(commands->err,
                commands->options->json ? "{\"rolled_back\":true,\"name\":\"%s\",\"from\":\"%s\",\"id\":\"%s\"}\n"
                                        : "%s: release %.12s crashed 3 times in a row; back to release %.12s\n",
                commands->options->operand, from, to);
  eb_json_flush(commands->err);
}

static void tell_not_counted(void *context, const eb_error *error) {
  const struct eb_commands *commands = context;
  eb_json_print(commands->err, "warning: crashes of this release are not counted: %s\n", error->message);
  eb_json_flush(commands->err);
}

/* The runtime gets our options, but not `run NAME`, and the store and the keys that we found. */
static eb_status make_arguments(const struct eb_commands *commands, const struct opened *opened,
                                const char *argv[ARGUMENTS_MAX], eb_error *error) {
  size_t count = 0;
  if (commands->argc + 5 + EB_SUPERVISE_ARGUMENTS > ARGUMENTS_MAX) {
    return eb_fail(error, EB_INPUT, "give fewer of them", "too many arguments");
  }
  argv[count++] = "edgebuild-run";
  argv[count++] = "--store";
  argv[count++] = opened->store.path;
  if (opened->path[0]) {
    argv[count++] = "--trust";
    argv[count++] = opened->path;
  }
  for (int i = 2; i < commands->argc; i++) {
    if (i != commands->options->operand_index) argv[count++] = commands->argv[i];
  }
  argv[count] = NULL;
  return EB_OK;
}

static eb_status run(struct eb_commands *commands, struct opened *opened, eb_error *error) {
  const char *argv[ARGUMENTS_MAX];
  eb_status status = read_trust(commands, opened, error);
  if (!status) status = eb_store_open(&opened->store, eb_store_path(commands->options), false, &commands->cpu, error);
  if (!status) status = make_arguments(commands, opened, argv, error);
  if (status) return status;
  struct eb_supervise supervise = {.store = &opened->store,
                                   .name = commands->options->operand,
                                   .keys = &opened->keys,
                                   .cpu = &commands->cpu,
                                   .argv = argv,
                                   .rolled_back = tell_rollback,
                                   .not_counted = tell_not_counted,
                                   .context = commands};
  return eb_supervise(&supervise, &commands->code, error);
}

static void report_follow(const struct eb_commands *commands, const struct eb_follow *follow,
                          const struct eb_install *install) {
  struct eb_json *out = commands->out;
  if (follow->warning.status) {
    eb_json_print(commands->err, "warning: the whole bundle was taken: %s\n", follow->warning.message);
  }
  if (commands->options->json) {
    eb_json_print(out,
                  "{\"followed\":true,\"up_to_date\":%s,\"delta\":%s,\"new_trust\":%s,\"bytes_fetched\":%llu,"
                  "\"connections\":%u}\n",
                  follow->up_to_date ? "true" : "false", follow->by_delta ? "true" : "false",
                  follow->new_trust ? "true" : "false", (unsigned long long)follow->fetched, follow->connections);
  } else {
    eb_json_print(out, follow->up_to_date ? "up to date"
                       : follow->by_delta ? "updated by a delta"
                                          : "updated by a whole bundle");
    eb_json_print(out, ": %llu bytes fetched\n", (unsigned long long)follow->fetched);
  }
  if (!follow->up_to_date) report_install(commands, install);
}

/* One look at what is published, with a store that is open for as long. */
static eb_status follow_once(struct eb_commands *commands, struct opened *opened, eb_error *error) {
  const struct eb_options *options = commands->options;
  struct eb_install work = {.store = &opened->store, .cpu = &commands->cpu};
  struct eb_follow follow = {.base = options->operand,
                             .name = options->name,
                             .target = options->target,
                             .patience = {.attempts = options->attempts}};
  eb_status status = read_trust(commands, opened, error);
  if (!status) status = eb_store_open(&opened->store, eb_store_path(options), true, &commands->cpu, error);
  if (!status) status = eb_store_lock(&opened->store, error);
  if (!status) status = eb_install_open(&work, error);
  if (status) return status;
  work.keys = &opened->keys;
  work.trust_path = opened->path[0] ? opened->path : NULL;
  status = eb_follow_run(&follow, &work, error);
  if (!status) report_follow(commands, &follow, &work);
  eb_install_close(&work);
  return status;
}

/* A tenth more or less: a fleet that was switched on together must not ask together for ever. */
static void rest(uint32_t seconds) {
  uint32_t random = 0;
  if (getrandom(&random, sizeof random, 0) < 0) random = (uint32_t)getpid();
  uint64_t pause = (uint64_t)seconds * (900 + random % 201); /* ms */
  struct timespec time = {(time_t)(pause / 1000), (long)(pause % 1000) * 1000000};
  while (nanosleep(&time, &time) < 0 && errno == EINTR) continue;
}

/* Again and again: a round that failed is told of, and the next one comes. */
static eb_status follow(struct eb_commands *commands, struct opened *opened, eb_error *error) {
  for (;;) {
    eb_status status = follow_once(commands, opened, error);
    if (!commands->options->every) return status;
    if (status) eb_json_error(commands->err, error, commands->options->json);
    eb_json_flush(commands->out);
    eb_json_flush(commands->err);
    eb_store_close(&opened->store);
    opened->store = eb_store_closed;
    rest(commands->options->every);
  }
}

eb_status eb_command_run(struct eb_commands *commands, eb_error *error) {
  static struct opened opened;
  static eb_status (*const all[])(struct eb_commands *, struct opened *, eb_error *) = {
      [EB_COMMAND_INSTALL] = install,
      [EB_COMMAND_STATUS] = show_status,
      [EB_COMMAND_ROLLBACK] = roll_back,
      [EB_COMMAND_GC] = collect,
      [EB_COMMAND_RUN] = run,
      [EB_COMMAND_FOLLOW] = follow,
  };
  opened.store = eb_store_closed;
  eb_cpu_detect(&commands->cpu);
  eb_status status = all[commands->options->command](commands, &opened, error);
  eb_store_close(&opened.store);
  return status;
}
