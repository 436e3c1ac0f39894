#include "options.h"

#include <string.h>

const char eb_options_help[] =
    "usage: edgebuild-run BUNDLE --input FILE|- [options]\n"
    "       edgebuild-run BUNDLE --check | --verify\n"
    "\n"
    "Verifies a bundle that edgebuild made and runs its function on every frame of the input. Prints one JSON object "
    "a\n"
    "frame on standard output: {\"seq\":0,\"outputs\":{\"NAME\":VALUE},\"latency_us\":12.3}; tensors are flat lists "
    "in\n"
    "row-major order. A summary follows on standard error.\n"
    "\n"
    "  --input FILE|-     frames: .y4m, raw RGB, .ppm or .npy; - is standard input\n"
    "  --input NAME=FILE  the same for one of several inputs; give the option once for each\n"
    "  --format FORMAT    y4m, rgb, ppm or npy; otherwise the first bytes tell, or the ending .rgb\n"
    "  --size WxH         frame size of raw RGB (default: the model's)\n"
    "  --trust FILE       public keys to trust; default $EDGEBUILD_TRUST, ~/.config/edgebuild/trust,\n"
    "                     /etc/edgebuild/trust\n"
    "  --threads N        threads, 1 to 64 (default: the processor's cores, at most 4)\n"
    "  --repeat N         run each frame N times; latency_us is the median\n"
    "  --no-pace          do not wait for the ticks of a timer trigger\n"
    "  --profile          print the least time of each operator on standard error\n"
    "  --check            run the golden inputs of the bundle and compare the outputs byte for byte\n"
    "  --verify           verify the bundle and run nothing\n"
    "  --json             summary and errors as JSON\n"
    "  --version, --help\n"
    "\n"
    "exit code: 0 success, 1 wrong argument or input, 2 bundle refused, 3 check failed, 4 the machine cannot run it,\n"
    "5 reading or writing failed, 6 not enough memory\n";

static eb_status usage(eb_error *error, const char *what, const char *which) {
  return eb_fail(error, EB_INPUT, "edgebuild-run --help lists the options", "%s%s", what, which);
}

static bool parse_number(const char *text, char end, uint32_t max, uint32_t *number, const char **rest) {
  uint64_t value = 0;
  const char *at = text;
  for (; *at >= '0' && *at <= '9' && value <= max; at++) value = value * 10 + (uint64_t)(*at - '0');
  if (at == text || *at != end || value < 1 || value > max) return false;
  *number = (uint32_t)value;
  if (rest) *rest = at + 1;
  return true;
}

static bool parse_size(const char *text, struct eb_options *options) {
  const char *height;
  return parse_number(text, 'x', 1u << 20, &options->width, &height) &&
         parse_number(height, 0, 1u << 20, &options->height, NULL);
}

static bool set_flag(const char *name, struct eb_options *options) {
  const struct {
    const char *name;
    bool *flag;
  } flags[] = {
      {"--json", &options->json},       {"--check", &options->check},     {"--verify", &options->verify},
      {"--no-pace", &options->no_pace}, {"--profile", &options->profile}, {"--version", &options->version},
      {"--help", &options->help},       {"-h", &options->help},
  };
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
    if (strcmp(flags[i].name, name) != 0) continue;
    *flags[i].flag = true;
    return true;
  }
  return false;
}

static eb_status set_value(const char *name, const char *value, struct eb_options *options, eb_error *error) {
  bool valid = true;
  if (strcmp(name, "--input") == 0) {
    if (options->input_count == EB_INPUTS_MAX) return usage(error, "too many inputs", "");
    options->input[options->input_count++] = value;
  } else if (strcmp(name, "--trust") == 0) {
    options->trust = value;
  } else if (strcmp(name, "--repeat") == 0) {
    valid = parse_number(value, 0, 100000000, &options->repeat, NULL);
  } else if (strcmp(name, "--threads") == 0) {
    valid = parse_number(value, 0, EB_THREADS_MAX, &options->threads, NULL);
  } else if (strcmp(name, "--format") == 0) {
    options->format = eb_format_of(value);
    valid = options->format != EB_FORMAT_DETECT;
  } else if (strcmp(name, "--size") == 0) {
    valid = parse_size(value, options);
  } else {
    return usage(error, "unknown option ", name);
  }
  if (valid) return EB_OK;
  return eb_fail(error, EB_INPUT, "edgebuild-run --help lists the options", "%s: wrong value %s", name, value);
}

static eb_status check_options(const struct eb_options *options, eb_error *error) {
  if (options->help || options->version) return EB_OK;
  if (!options->bundle) return usage(error, "no bundle is given", "");
  if (options->check && options->verify) return usage(error, "--check and --verify exclude each other", "");
  if ((options->check || options->verify) && options->input_count) {
    return usage(error, "--check and --verify take no --input", "");
  }
  return EB_OK;
}

eb_status eb_options_parse(int argc, char **argv, struct eb_options *options, eb_error *error) {
  *options = (struct eb_options){.repeat = 1};
  for (int i = 1; i < argc; i++) {
    /* Errors of the command line itself follow --json wherever it stands. */
    if (strcmp(argv[i], "--json") == 0) options->json = true;
  }
  for (int i = 1; i < argc; i++) {
    const char *argument = argv[i];
    if (set_flag(argument, options)) continue;
    eb_status status = EB_OK;
    if (argument[0] == '-' && argument[1]) {
      if (i + 1 == argc) return usage(error, "unknown option, or one without its value: ", argument);
      status = set_value(argument, argv[++i], options, error);
    } else if (options->bundle) {
      status = usage(error, "more than one bundle is given: ", argument);
    } else {
      options->bundle = argument;
    }
    if (status) return status;
  }
  return check_options(options, error);
}
