// bench_options.h - the options of a benchmark: pairs of --name and value, each with a default.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

struct bench_options {
    std::map<std::string, std::string> values;

    // Returns what is wrong with the arguments, or nothing.
    std::string read(int argc, char **argv) {
        for (int i = 1; i < argc; i += 2) {
            const std::string name = std::strncmp(argv[i], "--", 2) == 0 ? argv[i] + 2 : "";
            if (!values.count(name)) {
                return std::string("unknown option ") + argv[i];
            }
            if (i + 1 == argc) {
                return std::string(argv[i]) + " lacks its value";
            }
            values[name] = argv[i + 1];
        }
        return "";
    }
    const std::string &at(const char *name) const { return values.at(name); }
    int64_t            number(const char *name) const { return std::atoll(values.at(name).c_str()); }
};
