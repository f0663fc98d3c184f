// As much of nanobind as csrc/bind*.cpp use, without Python: what they bind is called by name with a list of arguments.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace nanobind {

struct Argument {
  int64_t integer;
  double real;
  std::vector<int64_t> list;
};
using Arguments = std::vector<Argument>;

// Nothing, integers, or words.
struct object {
  std::vector<int64_t> integers;
  std::vector<std::string> words;
};
struct capsule : object {
  capsule(const void*, const char*) {}
};
inline object none() { return {}; }
inline object make_tuple(int64_t a, int64_t b, int64_t c) { return {{a, b, c}, {}}; }

inline object returned(object o) { return o; }
inline object returned(int64_t integer) { return {{integer}, {}}; }
inline object returned(const std::string& word) { return {{}, {word}}; }
inline object returned(const std::vector<std::string>& words) { return {{}, words}; }

template <class T>
struct Taken {
  static T from(const Argument& a) { return static_cast<T>(a.integer); }
};
template <>
struct Taken<double> {
  static double from(const Argument& a) { return a.real; }
};
template <>
struct Taken<float> {
  static float from(const Argument& a) { return static_cast<float>(a.real); }
};
template <>
struct Taken<const std::vector<int64_t>&> {
  static const std::vector<int64_t>& from(const Argument& a) { return a.list; }
};

template <class Function, class Result, class... Takes, size_t... I>
object apply(const Function& function, const Arguments& arguments, Result (*)(Takes...), std::index_sequence<I...>) {
  if (arguments.size() != sizeof...(Takes)) throw std::invalid_argument("another number of arguments is expected");
  if constexpr (std::is_void_v<Result>) {
    function(Taken<Takes>::from(arguments[I])...);
    return none();
  } else {
    return returned(function(Taken<Takes>::from(arguments[I])...));
  }
}

struct gil_scoped_release {};
template <class>
struct call_guard {};

struct module_ {
  std::map<std::string, std::function<object(const Arguments&)>> functions;
  std::string text;
  std::string& doc() { return text; }

  template <class Result, class... Takes, class... Extra>
  void def(const char* name, Result (*function)(Takes...), const Extra&...) {
    functions[name] = [function](const Arguments& arguments) {
      return apply(function, arguments, function, std::index_sequence_for<Takes...>());
    };
  }
  template <class Lambda, class... Extra>  // those here capture nothing: they are plain functions
  void def(const char* name, Lambda lambda, const Extra&... extra) {
    def(name, +lambda, extra...);
  }
};

}  // namespace nanobind

#define NB_MODULE(name, m) void bind_module(nanobind::module_& m)
