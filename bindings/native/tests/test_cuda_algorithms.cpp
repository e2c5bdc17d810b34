// test_cuda_algorithms.cpp - the file of measured algorithms: what was put in comes out again, of the same library and device only, and a
// file that is not one is refused.
#include "checks.h"
#include "cuda/algorithms.h"
#include "failure.h"

#include <cstdio>
#include <fstream>
#include <sstream>

using namespace checks;
using namespace cft::cuda;

namespace {

const std::string path = "test_cuda_algorithms.txt";

std::string content() {
    std::ostringstream all;
    all << std::ifstream(path, std::ios::binary).rdbuf();
    return all.str();
}
void set_content(const std::string &text) { std::ofstream(path, std::ios::binary) << text; }

// What a file is refused for, or nothing.
std::string refusal(const std::string &of) {
    try {
        algorithms a(of, "me");
    } catch (const cft::failure &f) {
        CHECK(f.status == CFT_ERR_INVALID_ARGUMENT);
        return f.what();
    }
    return "";
}

void test_choices() {
    where = "choices";
    std::remove(path.c_str());
    const shape_key small = {1, 2, 3}, large = {4096, 24576, 4128, 4128, 4128, 24608, 2, 0, 256, 256, 16};
    const algorithm one{{1, 0xffffffffffffffffu, 0, 7}, 0}, two{{2}, 64 << 20}, three{{3}, 1};
    {
        algorithms mine(path, "cuBLASLt 130000, a device");
        CHECK(!mine.find(small));
        mine.add(small, one);
        mine.add(large, two);
        CHECK(mine.find(small) && mine.find(small)->words == one.words);
    }
    const std::string before = content();
    algorithms        again(path, "cuBLASLt 130000, a device");
    CHECK(again.find(small) && again.find(small)->words == one.words && again.find(small)->workspace == 0);
    CHECK(again.find(large) && again.find(large)->words == two.words && again.find(large)->workspace == two.workspace);
    CHECK(!again.find(shape_key{1, 2, 4}) && content() == before);
    // Another library's choices stay apart, in the same file.
    algorithms other(path, "cuBLASLt 130001, a device");
    CHECK(!other.find(small));
    other.add(small, three);
    CHECK(algorithms(path, "cuBLASLt 130000, a device").find(small)->words == one.words);
    CHECK(algorithms(path, "cuBLASLt 130001, a device").find(small)->words == three.words);
    // Of two choices for a shape the first holds.
    again.add(large, three);
    CHECK(algorithms(path, "cuBLASLt 130000, a device").find(large)->words == two.words);
}

void test_refusals() {
    where                   = "refusals";
    const std::string whole = content();
    CHECK(refusal(path).empty());
    for (const std::string &text : {std::string("hello\n"), std::string("\n"), whole + "torn", whole.substr(0, whole.size() - 1), whole.substr(0, whole.size() - 4) + "\n",
                                    whole.substr(0, whole.size() - 1) + " 1\n", "a\tb" + whole}) {
        set_content(text);
        const std::string words = refusal(path);
        CHECK(words.find(path) != std::string::npos && words.find("line ") != std::string::npos && words.find("remove the file") != std::string::npos);
        CHECK(content() == text);
    }
    CHECK(refusal("no/such/folder/file").find("cannot be written") != std::string::npos);
    std::remove(path.c_str());
}

} // namespace

int main() {
    test_choices();
    test_refusals();
    return finish("test_cuda_algorithms");
}
