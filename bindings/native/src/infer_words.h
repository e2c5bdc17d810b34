// infer_words.h - tokenizing by words that were seen before: libllama splits and merges every word anew each time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct llama_vocab;

namespace cft {

// word_cache gives the tokens that libllama gives, an order of magnitude faster on text in words.
//
// A byte-pair vocabulary's pre-tokenizer is a regular expression. In those that this takes (see usable_for), white space
// stands at the beginning of a match only, nothing looks behind, and what looks ahead looks from white space. So before a
// space that follows a character other than white space a match ends whatever stands around it: tokens never span that
// place, and the tokens of a text are those of its pieces between such places, one after the other. Here a place counts if
// the character before is ASCII. It serves several callers at once.
class word_cache {
  public:
    // NULL where tokens may span such a place: another kind of vocabulary or pre-tokenizer, or user-defined tokens
    // that have a space or take white space around them away. pre is the vocabulary's tokenizer.ggml.pre.
    static std::unique_ptr<word_cache> make(const llama_vocab *vocab, const std::string &pre);
    ~word_cache();

    // Appends the tokens of text, in which control tokens stay text.
    void tokenize(const char *text, size_t n, std::vector<int32_t> &tokens);

  private:
    struct shard;
    explicit word_cache(const llama_vocab *vocab);
    void piece(const char *text, size_t n, std::vector<int32_t> &tokens);

    const llama_vocab       *vocab_;
    std::unique_ptr<shard[]> shards_;
};

// append_tokens appends libllama's tokens of text; it throws failure where there are too many.
void append_tokens(const llama_vocab *vocab, const char *text, size_t n, bool parse_special, std::vector<int32_t> &tokens);

} // namespace cft
