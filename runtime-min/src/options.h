/* The command line of edgebuild-run. */
#ifndef EB_OPTIONS_H
#define EB_OPTIONS_H

#include "source.h"

#define EB_INPUTS_MAX 64

struct eb_options {
  const char *bundle;
  const char *trust;
  const char *input[EB_INPUTS_MAX]; /* FILE or NAME=FILE */
  uint32_t input_count;
  uint32_t repeat;
  uint32_t threads; /* 0: choose */
  uint32_t width;   /* 0: the model's */
  uint32_t height;
  enum eb_format format;
  bool json;
  bool check;
  bool verify;
  bool no_pace;
  bool profile;
  bool version;
  bool help;
};

eb_status eb_options_parse(int argc, char **argv, struct eb_options *options, eb_error *error);

extern const char eb_options_help[];

#endif
