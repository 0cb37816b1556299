// Package fault owns the kinds of error that some caller branches on, their
// stable reasons, and the message a person reads.
//
// It never knows a transport: shared/rpcfault translates kinds to RPC codes and
// the edge translates them to HTTP answers. It holds no state, so nothing of it
// survives a crash. An *Error is safe for concurrent readers once With is no
// longer called on it.
package fault

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
)

// Kind says what a caller may do about an error. The numbers are part of no
// wire format; the names are (String).
type Kind uint8

const (
	Internal        Kind = iota // ours to fix; the zero value, so that an error nobody classified is never shown as the caller's fault
	Invalid                     // the request can never succeed as written
	NotFound                    // the named thing does not exist
	Conflict                    // it changed meanwhile, or exists already
	Denied                      // authenticated, but not allowed
	Unauthenticated             // no or bad credentials
	Unavailable                 // try again, here or elsewhere
	TooLarge                    // over a size limit
	Exhausted                   // over a rate or a quota
	WrongZone                   // another zone holds it; Meta says where to go
	Unimplemented               // this build does not do that
)

var kindNames = [...]string{
	Internal: "internal", Invalid: "invalid", NotFound: "not_found", Conflict: "conflict",
	Denied: "denied", Unauthenticated: "unauthenticated", Unavailable: "unavailable",
	TooLarge: "too_large", Exhausted: "exhausted", WrongZone: "wrong_zone", Unimplemented: "unimplemented",
}

// String is the stable lower-case name of the kind.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "kind(" + strconv.Itoa(int(k)) + ")"
}

// ParseKind is the inverse of String. Unknown text is Internal and false.
func ParseKind(s string) (Kind, bool) {
	for k, name := range kindNames {
		if name == s {
			return Kind(k), true
		}
	}
	return Internal, false
}

// Error is an error that a caller or a person acts on.
type Error struct {
	Kind    Kind
	Reason  string            // stable, SCREAMING_SNAKE ("REGION_UNKNOWN"): programs match on it, so it never changes
	Message string            // for people: what fails, on what, what to do
	Field   string            // path of the offending field, where there is one: "spec.pairs[2].to"
	Meta    map[string]string // small stable facts for programs; never personal data or key material
	Err     error             // the cause, kept for logs; its text is already in Message when New was given %w
}

// New builds an Error. format is fmt.Errorf's, %w included: what %w wraps is
// the cause that Unwrap returns.
func New(k Kind, reason, format string, args ...any) *Error {
	e := &Error{Kind: k, Reason: reason}
	if !strings.Contains(format, "%w") {
		e.Message = fmt.Sprintf(format, args...)
		return e
	}
	err := fmt.Errorf(format, args...)
	e.Message = err.Error()
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		e.Err = u.Unwrap()
	default: // several %w: keep the joined error whole, it unwraps to each
		e.Err = err
	}
	return e
}

// Error is the message for people. The reason is left out: it is for programs
// and travels beside the message.
func (e *Error) Error() string {
	switch {
	case e.Message != "":
		return e.Message
	case e.Err != nil:
		return e.Err.Error()
	case e.Reason != "":
		return e.Reason
	}
	return e.Kind.String()
}

// Unwrap is the cause, or nil.
func (e *Error) Unwrap() error { return e.Err }

// With returns a copy that carries key=value in Meta. A copy, so that a shared
// error value cannot be changed under its readers.
func (e *Error) With(key, value string) *Error {
	c := *e
	c.Meta = make(map[string]string, len(e.Meta)+1)
	maps.Copy(c.Meta, e.Meta)
	c.Meta[key] = value
	return &c
}

// At returns a copy that names the offending field.
func (e *Error) At(field string) *Error {
	c := *e
	c.Field = field
	return &c
}

// As finds the outermost *Error in err's chain.
func As(err error) (*Error, bool) { return errors.AsType[*Error](err) }

// KindOf is the kind of the outermost *Error in err's chain, Internal when
// there is none. Ask only about a non-nil error.
func KindOf(err error) Kind {
	if e, ok := As(err); ok {
		return e.Kind
	}
	return Internal
}

// ReasonOf is the reason of the outermost *Error in err's chain, or "".
func ReasonOf(err error) string {
	if e, ok := As(err); ok {
		return e.Reason
	}
	return ""
}
