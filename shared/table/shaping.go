package table

import "time"

// What is done to requests and answers beside sending them on. Names of fields are in net/http's canonical form.

// CORS says which pages' scripts may use an API.
type CORS struct {
	Origins     []string      `json:"origins"` // scheme://host[:port]; scheme://*.host[:port]; *
	Methods     []string      `json:"methods,omitempty"`
	Headers     []string      `json:"headers,omitempty"`
	Expose      []string      `json:"expose,omitempty"`
	Credentials bool          `json:"credentials,omitempty"` // never with origin *
	MaxAge      time.Duration `json:"max_age,omitempty"`
}

// Rewrite changes requests on their way to upstreams, and their answers.
type Rewrite struct {
	Strip    string `json:"strip,omitempty"` // segments off the start of the path
	Put      string `json:"put,omitempty"`   // in front of what is left
	Host     string `json:"host,omitempty"`  // that upstreams are sent; "": their URL's
	Request  Fields `json:"request,omitzero"`
	Response Fields `json:"response,omitzero"`
}

// Fields are changed in this order.
type Fields struct {
	Remove []string `json:"remove,omitempty"`
	Set    []Field  `json:"set,omitempty"`
	Add    []Field  `json:"add,omitempty"`
}

// Field is a header field.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Validation is what requests are held against.
type Validation struct {
	OpenAPI bool   `json:"openapi,omitempty"` // the API's document
	Schema  string `json:"schema,omitempty"`  // JSON Schema of the body
}

// GraphQL bounds what one request may ask.
type GraphQL struct {
	Depth         int   `json:"depth"`
	Aliases       int   `json:"aliases"`
	RootFields    int   `json:"root_fields"`
	Cost          int64 `json:"cost"`
	Batch         int   `json:"batch,omitempty"` // operations in a list; 0: no list is taken
	Introspection bool  `json:"introspection,omitempty"`
}
