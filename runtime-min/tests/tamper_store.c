#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "edgebuild_run.h"
#include "install_delta.h"
#include "tamper.h"

#define ENTRIES_MAX 128
#define PATH_SIZE 1024
#define FOLDERS 6

static const char *const folders[FOLDERS] = {".", "blobs", "partial", "releases", "functions", "trusts"};

struct entry {
  int folder;
  char name[128];
  uint8_t digest[EB_SHA256_BYTES];
};

/* Every file of a store. */
struct listing {
  int count;
  struct entry entry[ENTRIES_MAX];
};

static struct {
  const char *path;
  eb_bytes base, trust;
  struct eb_cpu cpu;
  struct listing before;
} made;

static void digest_file(const char *path, uint8_t digest[EB_SHA256_BYTES]) {
  struct stat info;
  int fd = open(path, O_RDONLY | O_NOFOLLOW);
  if (fd < 0 || fstat(fd, &info)) tamper_die(path);
  size_t size = (size_t)info.st_size;
  void *data = malloc(size + 1);
  if (!data || read(fd, data, size + 1) != (ssize_t)size) tamper_die(path);
  close(fd);
  eb_sha256(made.cpu.sha256, data, size, digest);
  free(data);
}

static void path_of(int folder, const char *name, char path[PATH_SIZE]) {
  snprintf(path, PATH_SIZE, "%s/%s/%s", made.path, folders[folder], name);
}

static void list_folder(int folder, struct listing *listing) {
  char path[PATH_SIZE];
  path_of(folder, "", path);
  DIR *open_folder = opendir(path);
  if (!open_folder) return;
  for (struct dirent *found; (found = readdir(open_folder));) {
    bool lock = strcmp(found->d_name, "lock") == 0 || strcmp(found->d_name, "state-lock") == 0;
    if (lock || found->d_type == DT_DIR) continue;
    tamper_require(listing->count < ENTRIES_MAX, "too many files in the store");
    struct entry *entry = &listing->entry[listing->count++];
    entry->folder = folder;
    snprintf(entry->name, sizeof entry->name, "%s", found->d_name);
    path_of(folder, found->d_name, path);
    digest_file(path, entry->digest);
  }
  closedir(open_folder);
}

static void list_store(struct listing *listing) {
  listing->count = 0;
  for (int folder = 0; folder < FOLDERS; folder++) list_folder(folder, listing);
}

static const struct entry *find(const struct listing *listing, const struct entry *wanted) {
  for (int i = 0; i < listing->count; i++) {
    const struct entry *entry = &listing->entry[i];
    if (entry->folder == wanted->folder && strcmp(entry->name, wanted->name) == 0) return entry;
  }
  return NULL;
}

static void remove_all(void) {
  struct listing listing;
  char path[PATH_SIZE];
  list_store(&listing);
  for (int i = 0; i < listing.count; i++) {
    path_of(listing.entry[i].folder, listing.entry[i].name, path);
    if (unlink(path)) tamper_die(path);
  }
}

/* A file that arrived whole, and is what its name says. */
static bool is_blob(const struct entry *entry) {
  char id[EB_ID_TEXT];
  eb_digest_text(entry->digest, id);
  return strcmp(folders[entry->folder], "blobs") == 0 && strcmp(entry->name, id) == 0;
}

static void check_unchanged(void) {
  static struct listing after;
  char path[PATH_SIZE];
  list_store(&after);
  for (int i = 0; i < made.before.count; i++) {
    const struct entry *before = &made.before.entry[i], *now = find(&after, before);
    tamper_require(now && memcmp(now->digest, before->digest, EB_SHA256_BYTES) == 0, "the store is not as it was");
  }
  for (int i = 0; i < after.count; i++) {
    const struct entry *entry = &after.entry[i];
    if (find(&made.before, entry)) continue;
    bool partial = strcmp(folders[entry->folder], "partial") == 0;
    tamper_require(partial || is_blob(entry), "the store has a file that it had not");
    path_of(entry->folder, entry->name, path);
    if (unlink(path)) tamper_die(path);
  }
}

static eb_status install(eb_bytes file, eb_bytes trust, char id[EB_ID_TEXT], bool *complete, eb_error *error) {
  struct eb_store store = eb_store_closed;
  static struct eb_keys keys;
  struct eb_install work = {.store = &store, .cpu = &made.cpu, .keys = &keys};
  struct tamper_source source = {file};
  tamper_require(trust.size < sizeof keys.given, "a trust file is too large to be given");
  memset(&keys, 0, sizeof keys);
  memcpy(keys.given, trust.data, trust.size);
  keys.given_size = trust.size;
  keys.is_given = true;
  eb_feed feed = tamper_feed(&source);
  eb_status status = eb_store_open(&store, made.path, true, &made.cpu, error);
  if (!status) status = eb_store_lock(&store, error);
  if (!status) status = eb_install_open(&work, error);
  if (!status) status = eb_install_feed(&work, &feed, error);
  if (!status) memcpy(id, work.head->id, EB_ID_TEXT);
  *complete = work.complete;
  eb_install_close(&work);
  eb_store_close(&store);
  return status;
}

/* What the store says is current is what was installed, and each of its files has the hash that was signed. */
static void check_installed(const char *id, eb_bytes trust, uint8_t digest[EB_SHA256_BYTES]) {
  struct eb_store store = eb_store_closed;
  char path[PATH_SIZE];
  eb_error error = {0};
  eb_feed feed;
  eb_model *model;
  int fd;
  tamper_require(eb_store_open(&store, made.path, false, &made.cpu, &error) == EB_OK, error.message);
  tamper_require(eb_store_head_feed(&store, id, &fd, &feed, &error) == EB_OK, error.message);
  eb_files files = eb_store_files(&store, id);
  tamper_require(eb_verify(&feed, &files, trust, &model, &error) == EB_OK, error.message);
  struct eb_state state;
  bool found;
  tamper_require(eb_store_state(&store, eb_model_info(model)->name, &state, &found, &error) == EB_OK, error.message);
  tamper_require(found && strcmp(state.current, id) == 0, "another release is current");
  eb_free(model);
  close(fd);
  eb_store_close(&store);
  snprintf(path, sizeof path, "%s/releases/%s", made.path, id);
  digest_file(path, digest);
}

void tamper_store_make(const char *path, eb_bytes base, eb_bytes trust) {
  char id[EB_ID_TEXT];
  bool complete;
  eb_error error = {0};
  eb_cpu_detect(&made.cpu);
  made.path = path;
  made.base = base;
  made.trust = trust;
  remove_all();
  if (base.size) tamper_require(install(base, trust, id, &complete, &error) == EB_OK, error.message);
  list_store(&made.before);
}

eb_status tamper_store_install(eb_bytes file, eb_bytes trust, uint8_t digest[EB_SHA256_BYTES], bool *unchanged,
                               eb_error *error) {
  char id[EB_ID_TEXT];
  eb_status status = install(file, trust, id, unchanged, error);
  if (status || *unchanged) {
    check_unchanged();
    return status;
  }
  check_installed(id, trust, digest);
  tamper_store_make(made.path, made.base, made.trust);
  return status;
}
