// infer_words.cpp - see infer_words.h.
#include "infer_words.h"
#include "failure.h"

#include "llama.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <functional>
#include <mutex>
#include <shared_mutex>
#include <string_view>
#include <unordered_map>

namespace cft {

namespace {

// Pre-tokenizers whose expressions are as the class asks.
constexpr std::string_view fitting[] = {"gpt-2",     "smollm", "starcoder", "refact",           "command-r", "olmo", "mpt",      "llama-bpe",
                                        "llama-v3",  "llama3", "qwen2",     "deepseek-r1-qwen", "stablelm2", "dbrx", "smaug-bpe"};

constexpr size_t n_shards = 64, most_entries = 2048; // of a shard; 130,000 words take some 20 MB
constexpr size_t longest  = 48;                      // bytes of a piece that is kept

bool is_space(unsigned char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

bool spans_spaces(const llama_vocab *vocab) {
    const int32_t n = llama_vocab_n_tokens(vocab);
    for (int32_t t = 0; t < n; t++) {
        const auto attributes = llama_vocab_get_attr(vocab, t);
        if ((attributes & LLAMA_TOKEN_ATTR_USER_DEFINED) == 0) {
            continue;
        }
        const char *text = llama_vocab_get_text(vocab, t);
        if ((attributes & (LLAMA_TOKEN_ATTR_LSTRIP | LLAMA_TOKEN_ATTR_RSTRIP)) != 0 || std::strchr(text, ' ') != nullptr) {
            return true;
        }
    }
    return false;
}

} // namespace

struct word_cache::shard {
    std::shared_mutex                                     mutex;
    std::unordered_map<std::string, std::vector<int32_t>> words;
};

word_cache::word_cache(const llama_vocab *vocab) : vocab_(vocab), shards_(new shard[n_shards]) {}
word_cache::~word_cache() = default;

std::unique_ptr<word_cache> word_cache::make(const llama_vocab *vocab, const std::string &pre) {
    const bool fits = std::find(std::begin(fitting), std::end(fitting), pre) != std::end(fitting);
    if (llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_BPE || !fits || spans_spaces(vocab)) {
        return nullptr;
    }
    return std::unique_ptr<word_cache>(new word_cache(vocab));
}

void word_cache::tokenize(const char *text, size_t n, std::vector<int32_t> &tokens) {
    for (size_t begin = 0; begin < n;) {
        size_t end = begin + 1;
        while (end < n) {
            const auto *space = static_cast<const char *>(std::memchr(text + end, ' ', n - end));
            end               = space ? size_t(space - text) : n;
            const auto before = static_cast<unsigned char>(text[end - 1]);
            if (end == n || (before < 0x80 && !is_space(before))) {
                break;
            }
            end++;
        }
        piece(text + begin, end - begin, tokens);
        begin = end;
    }
}

void word_cache::piece(const char *text, size_t n, std::vector<int32_t> &tokens) {
    if (n > longest) {
        append_tokens(vocab_, text, n, false, tokens);
        return;
    }
    const std::string word(text, n);
    shard            &s = shards_[std::hash<std::string>()(word) % n_shards];
    {
        const std::shared_lock<std::shared_mutex> lock(s.mutex);
        const auto                                known = s.words.find(word);
        if (known != s.words.end()) {
            tokens.insert(tokens.end(), known->second.begin(), known->second.end());
            return;
        }
    }
    std::vector<int32_t> own;
    append_tokens(vocab_, text, n, false, own);
    tokens.insert(tokens.end(), own.begin(), own.end());
    const std::unique_lock<std::shared_mutex> lock(s.mutex);
    if (s.words.size() < most_entries) {
        s.words.emplace(word, std::move(own));
    }
}

void append_tokens(const llama_vocab *vocab, const char *text, size_t n, bool parse_special, std::vector<int32_t> &tokens) {
    const size_t before = tokens.size();
    // A token has at least one byte, but for the rare ones that libllama puts in front.
    tokens.resize(before + n + 2);
    int32_t count = llama_tokenize(vocab, text, int32_t(n), tokens.data() + before, int32_t(std::min<size_t>(n + 2, INT_MAX)), false, parse_special);
    if (count < 0 && count != INT32_MIN) {
        tokens.resize(before + size_t(-count));
        count = llama_tokenize(vocab, text, int32_t(n), tokens.data() + before, -count, false, parse_special);
    }
    if (count < 0) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "text of " + std::to_string(n) + " bytes has too many tokens");
    }
    tokens.resize(before + size_t(count));
}

} // namespace cft
