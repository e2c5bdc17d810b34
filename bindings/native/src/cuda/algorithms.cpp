// algorithms.cpp - see algorithms.h. A line: whose, tab, the shape's numbers, the workspace, and the words in hexadecimal.
#include "algorithms.h"

#include "../failure.h"

#include <cinttypes>
#include <fstream>
#include <sstream>

namespace cft::cuda {
namespace {

[[noreturn]] void refuse(const std::string &path, const std::string &what) {
    throw failure(CFT_ERR_INVALID_ARGUMENT, "algorithms of products (CFT_CUDA_TUNE): " + path + ": " + what);
}

bool parse(const std::string &text, shape_key &key, algorithm &a) {
    std::istringstream in(text);
    for (int64_t &number : key) {
        in >> number;
    }
    in >> a.workspace >> std::hex;
    for (uint64_t &word : a.words) {
        in >> word;
    }
    std::string more;
    return in && !(in >> more);
}

std::string line_of(const std::string &whose, const shape_key &key, const algorithm &a) {
    std::ostringstream out;
    out << whose << '\t';
    for (int64_t number : key) {
        out << number << ' ';
    }
    out << a.workspace << std::hex;
    for (uint64_t word : a.words) {
        out << ' ' << word;
    }
    out << '\n';
    return out.str();
}

} // namespace

algorithms::algorithms(const std::string &path, const std::string &whose) : path_(path), whose_(whose) {
    std::ifstream file(path, std::ios::binary);
    std::string   line;
    for (int number = 1; std::getline(file, line); number++) {
        const size_t tab = line.find('\t');
        shape_key    key;
        algorithm    a;
        if (file.eof() || tab == std::string::npos || !parse(line.substr(tab + 1), key, a)) { // a whole line ends
            refuse(path, "line " + std::to_string(number) + " is no algorithm; remove the file, and all are measured again");
        }
        if (line.compare(0, tab, whose_) == 0) {
            chosen_.emplace(key, a); // of two, the first
        }
    }
    if (!std::ofstream(path, std::ios::binary | std::ios::app)) {
        refuse(path, "cannot be written");
    }
}

const algorithm *algorithms::find(const shape_key &key) const {
    const auto at = chosen_.find(key);
    return at == chosen_.end() ? nullptr : &at->second;
}

void algorithms::add(const shape_key &key, const algorithm &a) {
    chosen_[key] = a;
    std::ofstream file(path_, std::ios::binary | std::ios::app);
    file << line_of(whose_, key, a) << std::flush;
    if (!file) {
        refuse(path_, "cannot be written");
    }
}

} // namespace cft::cuda
