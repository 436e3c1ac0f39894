/* What is installed under a name (SPEC 11, functions/NAME): text to struct and back. */
#ifndef EB_STATE_H
#define EB_STATE_H

#include "bundle.h"

#define EB_NAME_TEXT 65u
#define EB_SIGNER_TEXT 17u
#define EB_SAID_MAX 4u
#define EB_BAD_MAX 16u
#define EB_CRASHES_MAX 3u
#define EB_STATE_BYTES_MAX ((size_t)2048)

/* The largest counter of a release that a key has signed. */
struct eb_said {
  uint32_t number;
  char signer[EB_SIGNER_TEXT];
};

struct eb_state {
  char target[EB_NAME_TEXT];
  uint32_t floor;
  char signer[EB_SIGNER_TEXT]; /* of the release that has raised it so far; empty: a store that did not note it */
  uint32_t said_count;         /* of other keys, below the floor, the largest first */
  struct eb_said said[EB_SAID_MAX];
  char current[EB_ID_TEXT]; /* empty: none, but marks of bad ones */
  bool confirmed;
  uint32_t crashes;
  char previous[EB_ID_TEXT]; /* empty: none */
  uint32_t bad_count;
  char bad[EB_BAD_MAX][EB_ID_TEXT];
};

/* `name` is for messages. */
eb_status eb_state_parse(eb_bytes text, const char *name, struct eb_state *state, eb_error *error);

/* The length of the text. */
size_t eb_state_text(const struct eb_state *state, char text[EB_STATE_BYTES_MAX]);

bool eb_state_is_bad(const struct eb_state *state, const char *id);

/* In front of the others; of more than EB_BAD_MAX the oldest is forgotten. */
void eb_state_mark_bad(struct eb_state *state, const char *id);

/* The release `id` becomes the current one, and what was current the previous one. */
void eb_state_install(struct eb_state *state, const char *id, uint32_t release, const char *signer);

/* The key that raised the floor counts no more: the floor is what the others said, or 1. */
void eb_state_forget_signer(struct eb_state *state);

/* The previous release becomes the current one again. `bad`: the other is marked bad and forgotten, otherwise it is the
 * previous one then. */
void eb_state_roll_back(struct eb_state *state, bool bad);

/* Whether a text is an ID, and a NAME of SPEC 2. */
bool eb_is_id(const char *text);
bool eb_is_name(const char *text);

#endif
