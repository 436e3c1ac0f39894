#include "remote.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"

#define HEAD_MAX ((size_t)8 << 10) /* of a response */
#define HEADS_MAX 8
#define DISCARD_MAX ((uint64_t)64 << 10) /* so much is read and dropped rather than asked for anew */
#define LEAST_PER_S 64u                  /* a line that gives less is as good as none: the store is locked for it */
#define PORT "80"

static const struct eb_remote_patience usual = {8, 500, 60000, 30000};

/* How an attempt ended. */
enum outcome { DONE, AGAIN, NEVER, MISSING };

static uint64_t next_random(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C(2685821657736338717);
}

static uint32_t usual_silence_ms(void) {
#ifdef EB_TEST_HOOKS
  const char *shorter = getenv("EDGEBUILD_TEST_SILENCE_MS");
  if (shorter) return (uint32_t)strtoul(shorter, NULL, 10);
#endif
  return usual.silence_ms;
}

void eb_remote_open(struct eb_remote *remote, const char *base, struct eb_remote_patience patience) {
  memset(remote, 0, sizeof *remote);
  remote->base = base;
  remote->patience = patience;
  if (!patience.attempts) remote->patience.attempts = usual.attempts;
  if (!patience.first_ms) remote->patience.first_ms = usual.first_ms;
  if (!patience.longest_ms) remote->patience.longest_ms = usual.longest_ms;
  if (!patience.silence_ms) remote->patience.silence_ms = usual_silence_ms();
  remote->fd = -1;
  remote->said = -1;
  /* Jitter only: a fleet that lost its server must not come back at once. */
  if (getrandom(&remote->random, sizeof remote->random, 0) < 0) remote->random = (uint64_t)getpid();
  remote->random |= 1;
}

static void disconnect(struct eb_remote *remote) {
  if (remote->fd >= 0) close(remote->fd);
  remote->fd = -1;
  remote->begin = remote->end = 0;
  if (remote->said >= 0) close(remote->said);
  remote->said = -1;
  if (!remote->child) return;
  kill(remote->child, SIGKILL);
  while (waitpid(remote->child, NULL, 0) < 0 && errno == EINTR) continue;
  remote->child = 0;
}

void eb_remote_close(struct eb_remote *remote) {
  disconnect(remote);
}

void eb_remote_file(struct eb_remote *remote, const char *name, uint64_t size) {
  disconnect(remote);
  snprintf(remote->name, sizeof remote->name, "%s", name);
  remote->size = size;
  remote->at = 0;
  remote->failures = 0;
  remote->arrived = 0;
  remote->lasting = false;
}

static bool starts_with(const char *text, const char *prefix) {
  return strncmp(text, prefix, strlen(prefix)) == 0;
}

static bool is_http(const struct eb_remote *remote) {
  return starts_with(remote->base, "http://");
}

static bool is_https(const struct eb_remote *remote) {
  return starts_with(remote->base, "https://");
}

/* The base and the name, with one slash between them. */
static void full_name(const struct eb_remote *remote, char *text, size_t capacity) {
  size_t length = strlen(remote->base);
  bool slash = length && remote->base[length - 1] == '/';
  snprintf(text, capacity, "%s%s%s", remote->base, slash ? "" : "/", remote->name);
}

/* A failure that another attempt may mend; the last one's words are what is said when all have failed. */
__attribute__((format(printf, 2, 3))) static enum outcome again(struct eb_remote *remote, const char *format, ...) {
  char what[256];
  va_list list;
  va_start(list, format);
  vsnprintf(what, sizeof what, format, list);
  va_end(list);
  eb_fail(&remote->error, EB_IO, "what has arrived is kept: the next attempt goes on from there",
          "cannot get %s from %.100s: %s", remote->name, remote->base, what);
  remote->lasting = false;
  return AGAIN;
}

__attribute__((format(printf, 3, 4))) static enum outcome never(struct eb_remote *remote, const char *hint,
                                                                const char *format, ...) {
  char what[256];
  va_list list;
  va_start(list, format);
  vsnprintf(what, sizeof what, format, list);
  va_end(list);
  eb_fail(&remote->error, EB_IO, hint, "cannot get %s from %.100s: %s", remote->name, remote->base, what);
  remote->lasting = true;
  return NEVER;
}

/* A regular file of a folder. */
static enum outcome open_local(struct eb_remote *remote) {
  char path[EB_REMOTE_URL_MAX + 256];
  struct stat info;
  full_name(remote, path, sizeof path);
  /* A FIFO would make us wait for who writes to it. */
  remote->fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (remote->fd < 0 && errno == ENOENT) return MISSING;
  if (remote->fd < 0 || fstat(remote->fd, &info) < 0) return never(remote, EB_HINT_PATH, "%s", strerror(errno));
  if (!S_ISREG(info.st_mode)) return never(remote, EB_HINT_PATH, "it is no regular file");
  if (lseek(remote->fd, (off_t)remote->at, SEEK_SET) < 0) return never(remote, EB_HINT_PATH, "%s", strerror(errno));
  remote->left = EB_REMOTE_SIZE_ANY;
  return DONE;
}

/* curl, whose output is the body from `at` on. */
static enum outcome open_curl(struct eb_remote *remote) {
  char url[EB_REMOTE_URL_MAX + 256], start[32], silence[16];
  int ends[2], said[2];
  full_name(remote, url, sizeof url);
  remote->drop = remote->whole ? remote->at : 0;
  snprintf(start, sizeof start, "%llu", (unsigned long long)(remote->at - remote->drop));
  snprintf(silence, sizeof silence, "%u", (remote->patience.silence_ms + 999) / 1000);
  if (pipe2(ends, O_CLOEXEC) < 0) return again(remote, "%s", strerror(errno));
  if (pipe2(said, O_CLOEXEC) < 0) {
    close(ends[0]);
    close(ends[1]);
    return again(remote, "%s", strerror(errno));
  }
  const char *const argv[] = {"curl",
                              "--silent",
                              "--fail",
                              "--location",
                              "--proto",
                              "=https",
                              "--connect-timeout",
                              silence,
                              "--speed-time",
                              silence,
                              "--write-out",
                              "%{stderr}%{http_code}",
                              "--continue-at",
                              start,
                              "--",
                              url,
                              NULL};
  pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    dup2(said[1], STDERR_FILENO);
    execvp("curl", (char *const *)(uintptr_t)argv);
    _exit(127);
  }
  close(ends[1]);
  close(said[1]);
  if (child < 0) {
    close(ends[0]);
    close(said[0]);
    return again(remote, "%s", strerror(errno));
  }
  remote->fd = ends[0];
  remote->said = said[0];
  remote->child = child;
  remote->left = EB_REMOTE_SIZE_ANY;
  return DONE;
}

/* The status code that curl's server answered with; 0: none. */
static int code_of_curl(const struct eb_remote *remote) {
  char text[4] = "";
  ssize_t got = read(remote->said, text, sizeof text - 1);
  return got > 0 ? atoi(text) : 0;
}

/* Of a status code that is no success. */
static enum outcome refused(struct eb_remote *remote, int code) {
  if (code == 404 || code == 410) return MISSING;
  if (code == 408 || code == 425 || code == 429 || code >= 500) return again(remote, "the server answers %d", code);
  return never(remote, code / 100 == 3 ? "give the URL that it leads to" : "look at the server's log",
               "the server answers %d", code);
}

/* What curl says when it ends (its exit codes: man curl). */
static enum outcome end_of_curl(struct eb_remote *remote) {
  int state = 0;
  while (waitpid(remote->child, &state, 0) < 0 && errno == EINTR) continue;
  remote->child = 0;
  int code = WIFEXITED(state) ? WEXITSTATUS(state) : -1;
  if (code == 0) return DONE;
  if (code == 127) {
    return never(remote, "install curl on the device, or use http://: everything that is fetched is signed",
                 "https:// needs curl, which is not there");
  }
  if (code == 33 && !remote->whole) {
    remote->whole = true;
    return again(remote, "curl: the server knows no ranges");
  }
  if (code == 22) return refused(remote, code_of_curl(remote));
  if (code == 60 || code == 51)
    return never(remote, "check the device's clock and certificates", "curl: the server's certificate does not hold");
  return again(remote, "curl ends with code %d", code);
}

struct address {
  char host[256], port[8], path[EB_REMOTE_URL_MAX + 256];
};

/* http://HOST[:PORT]/PATH; a host in brackets is an IPv6 address. */
static bool parse_url(const char *url, struct address *address) {
  const char *host = url + strlen("http://"), *path = strchr(host, '/');
  size_t length = path ? (size_t)(path - host) : strlen(host);
  const char *end = host + length, *colon = memchr(host, ':', length);
  const char *port = PORT;
  if (*host == '[') {
    const char *close = memchr(host, ']', length);
    if (!close) return false;
    colon = close + 1 < end && close[1] == ':' ? close + 1 : NULL;
    if (!colon && close + 1 != end) return false;
    length = (size_t)(close - host - 1);
    host++;
  } else {
    length = colon ? (size_t)(colon - host) : length;
  }
  if (colon) {
    if (end - colon - 1 < 1 || end - colon - 1 > 5) return false;
    memcpy(address->port, colon + 1, (size_t)(end - colon - 1));
    address->port[end - colon - 1] = 0;
    if (strspn(address->port, "0123456789") != strlen(address->port)) return false;
    if (atoi(address->port) < 1 || atoi(address->port) > 65535) return false;
  } else {
    memcpy(address->port, port, strlen(port) + 1);
  }
  if (!length || length >= sizeof address->host || memchr(host, '@', length)) return false;
  memcpy(address->host, host, length);
  address->host[length] = 0;
  snprintf(address->path, sizeof address->path, "%s", path ? path : "/");
  for (const char *at = address->path; *at; at++) {
    if (*at <= 0x20 || *at > 0x7e || *at == '#') return false; /* nothing that would end the request's line */
  }
  return true;
}

/* Waits until the socket is ready: false after the silence that is borne. */
static bool wait_for(const struct eb_remote *remote, short events) {
  struct pollfd poll_fd = {.fd = remote->fd, .events = events};
  int ready;
  do {
    ready = poll(&poll_fd, 1, (int)remote->patience.silence_ms);
  } while (ready < 0 && errno == EINTR);
  return ready > 0;
}

static bool connect_one(struct eb_remote *remote, const struct addrinfo *info) {
  remote->fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (remote->fd < 0) return false;
  int failure = 0;
  socklen_t size = sizeof failure;
  if (connect(remote->fd, info->ai_addr, info->ai_addrlen) == 0) return true;
  if (errno == EINPROGRESS && wait_for(remote, POLLOUT) &&
      getsockopt(remote->fd, SOL_SOCKET, SO_ERROR, &failure, &size) == 0 && !failure) {
    return true;
  }
  if (failure) errno = failure;
  close(remote->fd);
  remote->fd = -1;
  return false;
}

static enum outcome connect_to(struct eb_remote *remote, const struct address *address) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
  int failure = getaddrinfo(address->host, address->port, &hints, &found);
  if (failure) return again(remote, "%s: %s", address->host, gai_strerror(failure));
  for (const struct addrinfo *at = found; at && remote->fd < 0; at = at->ai_next) connect_one(remote, at);
  int problem = errno;
  freeaddrinfo(found);
  return remote->fd >= 0 ? DONE : again(remote, "%s", strerror(problem));
}

static bool send_all(const struct eb_remote *remote, const char *text) {
  for (size_t left = strlen(text); left;) {
    ssize_t sent = send(remote->fd, text, left, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno != EAGAIN) return false;
    if (sent < 0 && !wait_for(remote, POLLOUT)) return false;
    if (sent < 0) continue;
    text += sent;
    left -= (size_t)sent;
  }
  return true;
}

/* What must come in the time of a silence. */
static uint64_t least(const struct eb_remote *remote) {
  return (uint64_t)LEAST_PER_S * remote->patience.silence_ms / 1000u;
}

static bool is_too_slow(struct eb_remote *remote, size_t got) {
  uint64_t now = eb_clock_ms();
  remote->watched += got;
  if (now - remote->watched_ms < remote->patience.silence_ms) return false;
  bool slow = remote->watched < least(remote);
  remote->watched_ms = now;
  remote->watched = 0;
  return slow;
}

/* More bytes behind those in the buffer: how many, 0 at the end of the connection, or a negative errno. */
static ssize_t receive(struct eb_remote *remote) {
  for (;;) {
    if (!wait_for(remote, POLLIN)) return -ETIMEDOUT;
    ssize_t got = read(remote->fd, remote->buffer + remote->end, sizeof remote->buffer - remote->end);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got < 0) return -errno;
    remote->end += (size_t)got;
    return got && is_too_slow(remote, (size_t)got) ? -ETIMEDOUT : got;
  }
}

/* The bytes from `begin` on without what is between the chunks. */
static void unchunk(struct eb_remote *remote) {
  remote->end =
      remote->begin + eb_chunks_take(&remote->chunks, remote->buffer + remote->begin, remote->end - remote->begin);
}

/* The value of a field, or NULL. `head` ends with NUL, its lines with CRLF. */
static const char *field(const char *head, const char *name) {
  size_t length = strlen(name);
  for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
    if (strncasecmp(line + 2, name, length) != 0 || line[2 + length] != ':') continue;
    const char *value = line + 3 + length;
    return value + strspn(value, " \t");
  }
  return NULL;
}

static bool number_of(const char *text, uint64_t *number) {
  char *end;
  if (!text || *text < '0' || *text > '9') return false;
  errno = 0;
  *number = strtoull(text, &end, 10);
  return errno == 0;
}

/* Whether that is all of a field's value. */
static bool is_word(const char *value, const char *word) {
  size_t length = strlen(word);
  if (strncasecmp(value, word, length) != 0) return false;
  value += length;
  return starts_with(value + strspn(value, " \t"), "\r\n");
}

/* 206: the range must start where it was asked to; 200: from the start, so that what is there already is passed over.
 */
static enum outcome take_body(struct eb_remote *remote, const char *head, int code) {
  uint64_t start = 0;
  const char *range = field(head, "Content-Range");
  if (code == 206 &&
      (!range || !starts_with(range, "bytes ") || !number_of(range + 6, &start) || start != remote->at)) {
    return never(remote, "the server does not keep to RFC 9110", "it answered with another range");
  }
  const char *transfer = field(head, "Transfer-Encoding"), *content = field(head, "Content-Encoding");
  remote->chunked = transfer && is_word(transfer, "chunked");
  if ((transfer && !remote->chunked) || (content && !is_word(content, "identity"))) {
    return never(remote, "let the server send files as they are", "it sends the file encoded");
  }
  if (remote->chunked || !number_of(field(head, "Content-Length"), &remote->left)) remote->left = EB_REMOTE_SIZE_ANY;
  remote->drop = code == 200 ? remote->at : 0;
  eb_chunks_open(&remote->chunks);
  if (remote->chunked) unchunk(remote);
  /* A server may give a part of what was asked for: the rest is asked for then. */
  uint64_t total = remote->left == EB_REMOTE_SIZE_ANY ? remote->size : start + remote->left;
  const char *whole = range ? strchr(range, '/') : NULL;
  bool known = code == 206 && whole && number_of(whole + 1, &total);
  if (known && remote->size == EB_REMOTE_SIZE_ANY) remote->size = total;
  if (remote->size != EB_REMOTE_SIZE_ANY && total != remote->size) {
    return never(remote, "publish the release's folder again, whole", "it has %llu bytes and should have %llu",
                 (unsigned long long)total, (unsigned long long)remote->size);
  }
  return DONE;
}

/* The next head into `head`, as text, and what follows it to the front of the buffer. */
static enum outcome next_head(struct eb_remote *remote, char head[HEAD_MAX + 1], int *code) {
  const uint8_t *end;
  while (!(end = memmem(remote->buffer, remote->end < HEAD_MAX ? remote->end : HEAD_MAX, "\r\n\r\n", 4))) {
    if (remote->end >= HEAD_MAX) return again(remote, "its answer is no HTTP");
    ssize_t got = receive(remote);
    if (got <= 0) return again(remote, "%s", got ? strerror((int)-got) : "the connection was closed");
  }
  size_t size = (size_t)(end - remote->buffer) + 2;
  memcpy(head, remote->buffer, size);
  head[size] = 0;
  remote->end -= size + 2;
  memmove(remote->buffer, remote->buffer + size + 2, remote->end);
  if (!starts_with(head, "HTTP/1.") || strlen(head) != size || head[8] != ' ')
    return again(remote, "its answer is no HTTP");
  *code = atoi(head + 9);
  return DONE;
}

static enum outcome read_head(struct eb_remote *remote) {
  char head[HEAD_MAX + 1];
  int code = 100;
  /* What is only said by the way (100 Continue, 103 Early Hints) comes in front of the answer. */
  for (int heads = 0; code / 100 == 1 && code != 101; heads++) {
    if (heads == HEADS_MAX) return again(remote, "its answer is no HTTP");
    enum outcome outcome = next_head(remote, head, &code);
    if (outcome != DONE) return outcome;
  }
  if (code == 200 || code == 206) return take_body(remote, head, code);
  return refused(remote, code);
}

static enum outcome open_http(struct eb_remote *remote) {
  char url[EB_REMOTE_URL_MAX + 256], request[EB_REMOTE_URL_MAX + 1024];
  struct address address;
  full_name(remote, url, sizeof url);
  if (!parse_url(url, &address)) return never(remote, "http://HOST[:PORT]/FOLDER", "this is no URL of a folder");
  enum outcome outcome = connect_to(remote, &address);
  if (outcome != DONE) return outcome;
  bool usual_port = strcmp(address.port, PORT) == 0, brackets = strchr(address.host, ':') != NULL;
  snprintf(request, sizeof request,
           "GET %s HTTP/1.1\r\nHost: %s%s%s%s%s\r\nUser-Agent: edgebuild-run\r\nAccept-Encoding: identity\r\n"
           "Range: bytes=%llu-\r\nConnection: close\r\n\r\n",
           address.path, brackets ? "[" : "", address.host, brackets ? "]" : "", usual_port ? "" : ":",
           usual_port ? "" : address.port, (unsigned long long)remote->at);
  if (!send_all(remote, request)) return again(remote, "%s", strerror(errno));
  return read_head(remote);
}

static enum outcome connect_once(struct eb_remote *remote) {
  remote->begin = remote->end = 0;
  remote->drop = 0;
  remote->chunked = false;
  remote->watched_ms = eb_clock_ms();
  remote->watched = 0;
  remote->connections++;
  if (strlen(remote->base) > EB_REMOTE_URL_MAX) return never(remote, "give a shorter one", "the name is too long");
  if (is_https(remote)) return open_curl(remote);
  return is_http(remote) ? open_http(remote) : open_local(remote);
}

/* Half of it at random: devices that failed together do not come back together. */
static void pause_before(struct eb_remote *remote) {
  uint64_t pause = remote->patience.first_ms;
  for (uint32_t i = 1; i < remote->failures && pause < remote->patience.longest_ms; i++) pause *= 2;
  if (pause > remote->patience.longest_ms) pause = remote->patience.longest_ms;
  pause = pause / 2 + next_random(&remote->random) % (pause / 2 + 1);
  struct timespec rest = {(time_t)(pause / 1000), (long)(pause % 1000) * 1000000};
  while (nanosleep(&rest, &rest) < 0 && errno == EINTR) continue;
}

/* Bytes of the connection's body into the buffer; DONE with none is its end. */
static enum outcome more(struct eb_remote *remote) {
  bool ended = remote->chunked && remote->chunks.state == EB_CHUNK_END;
  ssize_t got = 0;
  if (remote->begin < remote->end && remote->left) return DONE;
  remote->begin = remote->end = 0;
  while (!ended && remote->left && remote->end == 0) {
    got = receive(remote);
    if (got <= 0) break;
    if (remote->chunked) unchunk(remote);
    if (remote->chunked && remote->chunks.state == EB_CHUNK_BAD) return again(remote, "its chunks are none");
    ended = remote->chunked && remote->chunks.state == EB_CHUNK_END;
  }
  if (got < 0) return again(remote, "%s", strerror((int)-got));
  if (remote->end) return DONE;
  if (remote->child) {
    enum outcome outcome = end_of_curl(remote);
    if (outcome != DONE) return outcome;
  }
  bool cut = remote->size != EB_REMOTE_SIZE_ANY ? remote->at < remote->size
             : remote->chunked                  ? !ended
                                                : remote->left != EB_REMOTE_SIZE_ANY && remote->left != 0;
  return !cut              ? DONE
         : is_http(remote) ? again(remote, "the connection was closed too early")
                           : never(remote, "publish the release's folder again, whole", "it is too short");
}

/* Some bytes from `at` on, none at the end: connects, and connects again. */
static enum outcome fetch(struct eb_remote *remote) {
  for (;;) {
    if (remote->size != EB_REMOTE_SIZE_ANY && remote->at >= remote->size) return DONE;
    enum outcome outcome = remote->fd < 0 ? connect_once(remote) : DONE;
    if (outcome == DONE) outcome = more(remote);
    if (outcome == DONE && remote->drop && remote->begin < remote->end) {
      uint64_t waiting = remote->end - remote->begin, dropped = waiting < remote->drop ? waiting : remote->drop;
      remote->drop -= dropped;
      remote->begin += (size_t)dropped;
      if (remote->left != EB_REMOTE_SIZE_ANY) remote->left -= dropped;
      if (remote->begin == remote->end) continue;
    }
    if (outcome != AGAIN) return outcome;
    disconnect(remote);
    remote->arrived = 0;
    if (++remote->failures >= remote->patience.attempts) return NEVER;
    pause_before(remote);
  }
}

static ssize_t read_remote(void *context, void *data, size_t size) {
  struct eb_remote *remote = context;
  enum outcome outcome = fetch(remote);
  if (outcome == MISSING) {
    eb_fail(&remote->error, EB_IO, "publish the release's folder again, whole", "%.200s has no %s", remote->base,
            remote->name);
    remote->lasting = true;
  }
  if (outcome != DONE) return -EIO;
  size_t count = remote->end - remote->begin;
  if (count > size) count = size;
  if (remote->size != EB_REMOTE_SIZE_ANY && count > remote->size - remote->at)
    count = (size_t)(remote->size - remote->at);
  if (count > remote->left) count = (size_t)remote->left; /* what follows the body is none of it */
  memcpy(data, remote->buffer + remote->begin, count);
  remote->begin += count;
  remote->at += count;
  if (remote->left != EB_REMOTE_SIZE_ANY) remote->left -= count;
  remote->fetched += count;
  remote->arrived += count;
  if (remote->arrived >= least(remote)) remote->failures = 0;
  remote->error.status = EB_OK; /* what failed before was mended */
  return (ssize_t)count;
}

/* Over what is here already: a short piece that is on its way is read, otherwise the rest is asked for anew. */
static int skip_remote(void *context, uint64_t size) {
  struct eb_remote *remote = context;
  if (remote->size != EB_REMOTE_SIZE_ANY && size > remote->size - remote->at) return -EINVAL;
  size_t waiting = remote->end - remote->begin;
  if (remote->fd < 0 || size > waiting + DISCARD_MAX) {
    disconnect(remote);
    remote->at += size;
    return 0;
  }
  for (uint8_t dropped[4096]; size;) {
    ssize_t got = read_remote(remote, dropped, size < sizeof dropped ? (size_t)size : sizeof dropped);
    if (got <= 0) return got ? (int)got : -EPIPE;
    size -= (uint64_t)got;
  }
  return 0;
}

eb_feed eb_remote_feed(struct eb_remote *remote) {
  return (eb_feed){.read = read_remote, .skip = skip_remote, .context = remote};
}

eb_status eb_remote_read(struct eb_remote *remote, const char *name, void *buffer, size_t limit, size_t *size,
                         bool *found, eb_error *error) {
  eb_remote_file(remote, name, EB_REMOTE_SIZE_ANY);
  *size = 0;
  *found = true;
  for (;;) {
    uint8_t beyond;
    bool full = *size == limit;
    enum outcome outcome = fetch(remote);
    if (outcome == MISSING) *found = false;
    if (outcome == MISSING) break;
    ssize_t got = outcome == DONE
                      ? read_remote(remote, full ? &beyond : (uint8_t *)buffer + *size, full ? 1 : limit - *size)
                      : -EIO;
    if (got < 0) {
      *error = remote->error;
      disconnect(remote);
      return error->status;
    }
    if (got == 0) break;
    if (full) {
      disconnect(remote);
      return eb_fail(error, EB_REFUSED, "publish the release's folder again", "%s of %.100s has more than %zu bytes",
                     name, remote->base, limit);
    }
    *size += (size_t)got;
  }
  disconnect(remote);
  return EB_OK;
}
