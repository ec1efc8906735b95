#include "mapped_code.h"

#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>
#include <unordered_map>

#include "elf_check.h"

namespace tensorwright {
namespace {

using Header = ElfW(Ehdr);
using Segment = ElfW(Phdr);
using Symbol = ElfW(Sym);
using Dynamic = ElfW(Dyn);
using Word = ElfW(Addr);

// Kinds of relocations: a slot becomes the base plus the addend, or a symbol's address plus the addend.
#if defined(__x86_64__)
constexpr unsigned kRelative = R_X86_64_RELATIVE;
constexpr unsigned kAbsolute[] = {R_X86_64_64, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT};
#elif defined(__aarch64__)
constexpr unsigned kRelative = R_AARCH64_RELATIVE;
constexpr unsigned kAbsolute[] = {R_AARCH64_ABS64, R_AARCH64_GLOB_DAT, R_AARCH64_JUMP_SLOT};
#elif defined(__riscv)
constexpr unsigned kRelative = R_RISCV_RELATIVE;
constexpr unsigned kAbsolute[] = {R_RISCV_64, R_RISCV_JUMP_SLOT};
#elif defined(__arm__)
constexpr unsigned kRelative = R_ARM_RELATIVE;
constexpr unsigned kAbsolute[] = {R_ARM_ABS32, R_ARM_GLOB_DAT, R_ARM_JUMP_SLOT};
#else
#error "no relocations are known for this architecture"
#endif

constexpr size_t kShownName = 200;

size_t PageUp(size_t value, size_t page) { return (value + page - 1) / page * page; }

unsigned KindOf(Word info) { return sizeof(Word) == 8 ? static_cast<unsigned>(info) : static_cast<unsigned>(info & 0xff); }
size_t SymbolOf(Word info) { return static_cast<size_t>(sizeof(Word) == 8 ? static_cast<uint64_t>(info) >> 32 : info >> 8); }

// Anonymous memory, initially zero.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  ~Memory() {
    if (base_) munmap(base_, size_);
  }

  void Map(size_t size) {
    void* memory = size ? mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
    if (memory == MAP_FAILED) throw Error("out of memory for the module's code");
    base_ = static_cast<uint8_t*>(memory), size_ = size;
  }

  uint8_t* base() const { return base_; }
  size_t size() const { return size_; }

  // `count` values at an address of the library. Throws Error unless they are inside it.
  template <typename T>
  T* At(uint64_t address, uint64_t count = 1) const {
    if (address > size_ || count > (size_ - address) / sizeof(T) || address % alignof(T) != 0) {
      throw Error("the module's code refers to memory that is not its own");
    }
    return reinterpret_cast<T*>(base_ + address);
  }

  const char* TextAt(uint64_t address) const {
    const char* text = At<const char>(address);
    if (!std::memchr(text, 0, size_ - address)) throw Error("the module's code has a symbol name without an end");
    return text;
  }

 private:
  uint8_t* base_ = nullptr;
  size_t size_ = 0;
};

}  // namespace

// Maps segments, applies relocations, looks up names.
class MappedCode::Image {
 public:
  explicit Image(Span file) : file_(file) {
    CheckElf(file);
    std::memcpy(&header_, file_.data, sizeof header_);
    Map();
    ReadDynamic();
    Relocate();
    Protect();
  }

  void* Find(const std::string& name) const {
    auto found = defined_.find(name);
    return found == defined_.end() ? nullptr : found->second;
  }

 private:
  Segment SegmentAt(int index) const {
    Segment segment;
    std::memcpy(&segment, file_.data + header_.e_phoff + index * sizeof segment, sizeof segment);
    return segment;
  }

  void Map() {
    size_t size = 0;
    for (int i = 0; i < header_.e_phnum; ++i) {
      Segment segment = SegmentAt(i);
      if (segment.p_type == PT_TLS) throw Error("the module's code has thread-local data, which a static program cannot load");
      if (segment.p_type == PT_LOAD) size = std::max(size, static_cast<size_t>(segment.p_vaddr + segment.p_memsz));
    }
    if (size > std::numeric_limits<size_t>::max() - page_) throw Error("out of memory for the module's code");
    memory_.Map(PageUp(size, page_));
    for (int i = 0; i < header_.e_phnum; ++i) {
      Segment segment = SegmentAt(i);
      if (segment.p_type == PT_DYNAMIC) dynamic_ = segment.p_vaddr;
      if (segment.p_type != PT_LOAD || segment.p_filesz == 0) continue;
      std::memcpy(memory_.At<uint8_t>(segment.p_vaddr, segment.p_filesz), file_.data + segment.p_offset, segment.p_filesz);
    }
  }

  void ReadDynamic() {
    for (uint64_t address = dynamic_;; address += sizeof(Dynamic)) {
      const Dynamic* entry = memory_.At<const Dynamic>(address);
      if (entry->d_tag == DT_NULL) break;
      if (entry->d_tag >= 0 && entry->d_tag < kTags) {
        tags_[entry->d_tag] = entry->d_un.d_val;
      } else if (entry->d_tag == DT_GNU_HASH) {
        gnu_hash_ = entry->d_un.d_val;
      } else if (entry->d_tag == 36) {  // DT_RELR
        throw Error("the module's code has packed relocations, which a static program cannot apply");
      }
    }
    symbol_count_ = SymbolCount();
    symbols_ = memory_.At<const Symbol>(tags_[DT_SYMTAB], symbol_count_);
    for (size_t i = 1; i < symbol_count_; ++i) {
      if (symbols_[i].st_shndx == SHN_UNDEF || symbols_[i].st_value > memory_.size()) continue;
      defined_.emplace(NameOf(symbols_[i]), memory_.base() + symbols_[i].st_value);
    }
  }

  const char* NameOf(const Symbol& symbol) const { return memory_.TextAt(uint64_t{tags_[DT_STRTAB]} + symbol.st_name); }

  // No dynamic entry has the number of symbols; the hash tables do.
  size_t SymbolCount() const {
    if (tags_[DT_HASH]) return memory_.At<const uint32_t>(tags_[DT_HASH], 2)[1];
    if (!gnu_hash_) throw Error("the module's code has no symbol table");
    const uint32_t* table = memory_.At<const uint32_t>(gnu_hash_, 4);
    uint64_t buckets = table[0], first = table[1], bloom = table[2];
    uint64_t bucket_start = uint64_t{gnu_hash_} + 16 + bloom * sizeof(Word), chain_start = bucket_start + buckets * 4;
    const uint32_t* bucket = memory_.At<const uint32_t>(bucket_start, buckets);
    uint64_t last = 0;
    for (uint64_t i = 0; i < buckets; ++i) last = std::max<uint64_t>(last, bucket[i]);
    if (last < first) return static_cast<size_t>(first);
    while (!(*memory_.At<const uint32_t>(chain_start + (last - first) * 4) & 1)) ++last;
    return static_cast<size_t>(last + 1);
  }

  void Relocate() {
    Apply<ElfW(Rela)>(tags_[DT_RELA], tags_[DT_RELASZ]);
    Apply<ElfW(Rel)>(tags_[DT_REL], tags_[DT_RELSZ]);
    if (tags_[DT_PLTREL] == DT_RELA) Apply<ElfW(Rela)>(tags_[DT_JMPREL], tags_[DT_PLTRELSZ]);
    if (tags_[DT_PLTREL] == DT_REL) Apply<ElfW(Rel)>(tags_[DT_JMPREL], tags_[DT_PLTRELSZ]);
  }

  static Word Addend(const ElfW(Rela) & each, Word) { return static_cast<Word>(each.r_addend); }
  static Word Addend(const ElfW(Rel) &, Word stored) { return stored; }

  template <typename Relocation>
  void Apply(Word table, Word bytes) {
    size_t count = bytes / sizeof(Relocation);
    const Relocation* all = memory_.At<const Relocation>(table, count);
    for (size_t i = 0; i < count; ++i) {
      Relocation each = all[i];
      uint8_t* place = memory_.At<uint8_t>(each.r_offset, sizeof(Word));
      Word value = 0;
      std::memcpy(&value, place, sizeof value);
      unsigned kind = KindOf(each.r_info);
      bool absolute = std::find(std::begin(kAbsolute), std::end(kAbsolute), kind) != std::end(kAbsolute);
      if (kind == kRelative) {
        value = reinterpret_cast<Word>(memory_.base()) + Addend(each, value);
      } else if (absolute) {
        // Before it is bound, an entry of the procedure linkage table has an address inside that table, which is not an
        // addend.
        Word addend = kind == kAbsolute[0] ? Addend(each, value) : 0;
        if (SymbolOf(each.r_info) >= symbol_count_) throw Error("the module's code refers to a symbol that it does not have");
        value = AddressOf(symbols_[SymbolOf(each.r_info)]) + addend;
      } else {
        throw Error("the module's code has a relocation of kind " + std::to_string(kind) + ", which is not known");
      }
      std::memcpy(place, &value, sizeof value);
    }
  }

  Word AddressOf(const Symbol& symbol) const {
    if (symbol.st_shndx != SHN_UNDEF) return reinterpret_cast<Word>(memory_.base()) + symbol.st_value;
    std::string name = NameOf(symbol);
    for (const tensorwright_symbol* each = tensorwright_symbols; each->name; ++each) {
      if (name == each->name) return reinterpret_cast<Word>(each->address);
    }
    if ((symbol.st_info >> 4) == STB_WEAK) return 0;
    throw Error("the module's code calls " + Quoted(Shortened(name, kShownName)) + ", which this program was linked without");
  }

  // Makes code read-only, and data non-executable.
  void Protect() {
    for (int i = 0; i < header_.e_phnum; ++i) {
      Segment segment = SegmentAt(i);
      if (segment.p_type != PT_LOAD || segment.p_flags & PF_W) continue;
      size_t start = segment.p_vaddr / page_ * page_, end = PageUp(segment.p_vaddr + segment.p_memsz, page_);
      int access = PROT_READ | (segment.p_flags & PF_X ? PROT_EXEC : 0);
      char* first = reinterpret_cast<char*>(memory_.base() + start);
      if (mprotect(first, end - start, access) != 0) throw Error("this system does not allow memory to become executable");
      if (segment.p_flags & PF_X) __builtin___clear_cache(first, reinterpret_cast<char*>(memory_.base() + end));
    }
  }

  static constexpr int kTags = 35;
  Span file_;
  Header header_;
  size_t page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE)), symbol_count_ = 0;
  Memory memory_;
  Word dynamic_ = 0, gnu_hash_ = 0;
  Word tags_[kTags] = {};
  const Symbol* symbols_ = nullptr;
  std::unordered_map<std::string, void*> defined_;
};

MappedCode::MappedCode(Span library) : image_(std::make_unique<Image>(library)) {}

MappedCode::~MappedCode() = default;

void* MappedCode::Find(const std::string& name) const { return image_->Find(name); }

}  // namespace tensorwright
