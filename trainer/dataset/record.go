package dataset

// Record is one entry of a data file, whatever format it came in.
type Record struct {
	// ID names the record in messages: file and line, 1-based ("train.jsonl:17").
	ID string
	// RowID is the row's own id, empty if it has none.
	RowID    string
	Query    string
	Response string // a candidate answer, possibly flawed
	Critique string
	Solution string // the clean answer
	Label    string // verdict on Response: right or wrong
	Gold     string
	Messages []Message
	// Train says which messages are learned; nil: all of the assistant's.
	Train []bool
	// InputIDs and Labels are set for format tokenized only; Labels is unshifted, IgnoreLabel = no loss.
	InputIDs, Labels []int32
	// Weight multiplies the loss of the record's targets; 1 unless the source or the row says otherwise.
	Weight float32
}

// Message is one turn of a conversation.
type Message struct {
	Role, Content string
}

// IgnoreLabel marks a label without loss, as in Hugging Face data sets.
const IgnoreLabel = -100

// The roles of messages.
const (
	RoleSystem    = "system"
	RoleUser      = "user"
	RoleAssistant = "assistant"
)
