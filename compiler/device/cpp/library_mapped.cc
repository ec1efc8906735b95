// Without the system's loader, which a static program does not have: segments are mapped, relocations applied, and
// functions of the C library found in a table that the program was linked with (tensorwright_symbols).
//
// The library is what the compiler made, checked against its checksums; of the format only what its linkers emit is
// known, and anything else is refused. Exceptions do not pass through its code: it returns error codes.
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <unordered_map>

#include "library.h"
#include "module_internal.h"

extern "C" {
struct tensorwright_symbol {
  const char* name;
  void* address;
};
extern const tensorwright_symbol tensorwright_symbols[];  // ends with a null name
}

namespace tensorwright {
namespace {

using Header = ElfW(Ehdr);
using Segment = ElfW(Phdr);
using Symbol = ElfW(Sym);
using Dynamic = ElfW(Dyn);
using Word = ElfW(Addr);

// Kinds of relocations: a place becomes the base plus the addend, or a symbol's address plus the addend.
#if defined(__x86_64__)
constexpr unsigned kMachine = EM_X86_64, kRelative = R_X86_64_RELATIVE;
constexpr unsigned kAbsolute[] = {R_X86_64_64, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT};
#elif defined(__aarch64__)
constexpr unsigned kMachine = EM_AARCH64, kRelative = R_AARCH64_RELATIVE;
constexpr unsigned kAbsolute[] = {R_AARCH64_ABS64, R_AARCH64_GLOB_DAT, R_AARCH64_JUMP_SLOT};
#elif defined(__riscv)
constexpr unsigned kMachine = EM_RISCV, kRelative = R_RISCV_RELATIVE;
constexpr unsigned kAbsolute[] = {R_RISCV_64, R_RISCV_JUMP_SLOT};
#elif defined(__arm__)
constexpr unsigned kMachine = EM_ARM, kRelative = R_ARM_RELATIVE;
constexpr unsigned kAbsolute[] = {R_ARM_ABS32, R_ARM_GLOB_DAT, R_ARM_JUMP_SLOT};
#else
#error "no relocations are known for this architecture"
#endif

size_t PageUp(size_t value, size_t page) { return (value + page - 1) / page * page; }

unsigned KindOf(Word info) { return sizeof(Word) == 8 ? static_cast<unsigned>(info) : static_cast<unsigned>(info & 0xff); }
size_t SymbolOf(Word info) { return static_cast<size_t>(sizeof(Word) == 8 ? static_cast<uint64_t>(info) >> 32 : info >> 8); }

// Owns the mapped memory, and knows the names in it.
class MappedLibrary final : public tvm::ffi::Library {
 public:
  explicit MappedLibrary(Span file) : file_(file) {
    std::memcpy(&header_, Bytes(0, sizeof header_), sizeof header_);
    if (std::memcmp(header_.e_ident, ELFMAG, SELFMAG) != 0 || header_.e_type != ET_DYN || header_.e_machine != kMachine ||
        header_.e_ident[EI_CLASS] != (sizeof(Word) == 8 ? ELFCLASS64 : ELFCLASS32)) {
      throw Error("the module's code is not a shared library for this processor");
    }
    Bytes(header_.e_phoff, header_.e_phnum * sizeof(Segment));
    Map();
    ReadDynamic();
    Relocate();
    Protect();
  }

  ~MappedLibrary() final {
    if (base_) munmap(base_, size_);
  }

  void* GetSymbol(const ffi::String& name) final {
    auto found = defined_.find(std::string(name));
    return found == defined_.end() ? nullptr : found->second;
  }

 private:
  const uint8_t* Bytes(size_t start, size_t count) const {
    if (start > file_.size || count > file_.size - start) throw Error("the module's code is cut off");
    return file_.data + start;
  }

  Segment SegmentAt(int index) const {
    Segment segment;
    std::memcpy(&segment, file_.data + header_.e_phoff + index * sizeof segment, sizeof segment);
    return segment;
  }

  template <typename T>
  T* At(Word address, size_t count = 1) const {
    if (address > size_ || count * sizeof(T) > size_ - address) throw Error("the module's code refers to memory that is not its own");
    return reinterpret_cast<T*>(base_ + address);
  }

  void Map() {
    for (int i = 0; i < header_.e_phnum; ++i) {
      Segment segment = SegmentAt(i);
      if (segment.p_type == PT_TLS) throw Error("the module's code keeps data of threads, which a static program can not load");
      if (segment.p_type == PT_LOAD) size_ = std::max(size_, static_cast<size_t>(segment.p_vaddr + segment.p_memsz));
    }
    size_ = PageUp(size_, page_);
    void* memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw Error("out of memory for the module's code");
    base_ = static_cast<uint8_t*>(memory);
    for (int i = 0; i < header_.e_phnum; ++i) {
      Segment segment = SegmentAt(i);
      if (segment.p_type == PT_DYNAMIC) dynamic_ = segment.p_vaddr;
      if (segment.p_type != PT_LOAD) continue;
      std::memcpy(At<uint8_t>(segment.p_vaddr, segment.p_filesz), Bytes(segment.p_offset, segment.p_filesz), segment.p_filesz);
    }
  }

  void ReadDynamic() {
    for (const Dynamic* entry = At<Dynamic>(dynamic_); entry->d_tag != DT_NULL; ++entry) {
      if (entry->d_tag >= 0 && entry->d_tag < kTags) {
        tags_[entry->d_tag] = entry->d_un.d_val;
      } else if (entry->d_tag == DT_GNU_HASH) {
        gnu_hash_ = entry->d_un.d_val;
      } else if (entry->d_tag == 36) {  // DT_RELR
        throw Error("the module's code has packed relocations, which a static program can not apply");
      }
    }
    symbols_ = At<Symbol>(tags_[DT_SYMTAB]);
    size_t count = SymbolCount();
    for (size_t i = 1; i < count; ++i) {
      if (symbols_[i].st_shndx != SHN_UNDEF) defined_.emplace(NameOf(symbols_[i]), base_ + symbols_[i].st_value);
    }
  }

  const char* NameOf(const Symbol& symbol) const { return At<char>(tags_[DT_STRTAB] + symbol.st_name); }

  // No entry says how many symbols there are; the hash tables do.
  size_t SymbolCount() const {
    if (tags_[DT_HASH]) return At<uint32_t>(tags_[DT_HASH], 2)[1];
    if (!gnu_hash_) throw Error("the module's code has no table of its names");
    const uint32_t* table = At<uint32_t>(gnu_hash_, 4);
    uint32_t buckets = table[0], first = table[1], bloom = table[2];
    const uint32_t* bucket = table + 4 + bloom * (sizeof(Word) / 4);
    const uint32_t* chain = bucket + buckets;
    uint32_t last = 0;
    for (uint32_t i = 0; i < buckets; ++i) last = std::max(last, bucket[i]);
    if (last < first) return first;
    while (!(chain[last - first] & 1)) ++last;
    return last + 1;
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
    const Relocation* all = At<Relocation>(table, bytes / sizeof(Relocation));
    for (size_t i = 0; i < bytes / sizeof(Relocation); ++i) {
      Word* place = At<Word>(all[i].r_offset);
      unsigned kind = KindOf(all[i].r_info);
      bool absolute = std::find(std::begin(kAbsolute), std::end(kAbsolute), kind) != std::end(kAbsolute);
      if (kind == kRelative) {
        *place = reinterpret_cast<Word>(base_) + Addend(all[i], *place);
      } else if (absolute) {
        // A slot of a procedure table holds an address inside of that table before it is bound, which is no addend.
        Word addend = kind == kAbsolute[0] ? Addend(all[i], *place) : 0;
        *place = AddressOf(symbols_[SymbolOf(all[i].r_info)]) + addend;
      } else {
        throw Error("the module's code has a relocation of kind " + std::to_string(kind) + ", which is not known");
      }
    }
  }

  Word AddressOf(const Symbol& symbol) const {
    if (symbol.st_shndx != SHN_UNDEF) return reinterpret_cast<Word>(base_) + symbol.st_value;
    std::string name = NameOf(symbol);
    for (const tensorwright_symbol* each = tensorwright_symbols; each->name; ++each) {
      if (name == each->name) return reinterpret_cast<Word>(each->address);
    }
    if ((symbol.st_info >> 4) == STB_WEAK) return 0;
    throw Error("the module's code calls " + name + ", which this program was linked without");
  }

  // Code can not be written, data can not be run.
  void Protect() {
    for (int i = 0; i < header_.e_phnum; ++i) {
      Segment segment = SegmentAt(i);
      if (segment.p_type != PT_LOAD || segment.p_flags & PF_W) continue;
      size_t start = segment.p_vaddr / page_ * page_, end = PageUp(segment.p_vaddr + segment.p_memsz, page_);
      int access = PROT_READ | (segment.p_flags & PF_X ? PROT_EXEC : 0);
      char* first = reinterpret_cast<char*>(base_ + start);
      if (mprotect(first, end - start, access) != 0) throw Error("this system does not let memory become code");
      if (segment.p_flags & PF_X) __builtin___clear_cache(first, reinterpret_cast<char*>(base_ + end));
    }
  }

  static constexpr int kTags = 35;
  Span file_;
  Header header_;
  size_t page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE)), size_ = 0;
  uint8_t* base_ = nullptr;
  Word dynamic_ = 0, gnu_hash_ = 0;
  Word tags_[kTags] = {};
  const Symbol* symbols_ = nullptr;
  std::unordered_map<std::string, void*> defined_;
};

}  // namespace

ffi::Module LoadLibrary(Span library) { return tvm::ffi::CreateLibraryModule(ffi::make_object<MappedLibrary>(library)); }

}  // namespace tensorwright
