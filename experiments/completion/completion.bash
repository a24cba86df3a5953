# Completes `cifar10` and `python cli.py` in bash and zsh. A Tab starts no Python.

_cifar10_table() {  # sets reply to the words that may follow a command, or a flag of a command
    case $1 in
    # TABLE
    *) reply= ;;
    esac
}

_cifar10_plain() {  # sets plain to a typed word without its quoting, quote to one that is open
    local rest=$1 char
    plain= quote=
    while [[ -n $rest ]]; do
        char=${rest:0:1} rest=${rest:1}
        case $quote$char in
        \\ | \"\\) plain+=${rest:0:1} rest=${rest:1} ;;
        \" | \') quote=$char ;;
        \"\" | \'\') quote= ;;
        *) plain+=$char ;;
        esac
    done
}

_cifar10_quoted() {  # sets word to how it is typed after $quote
    if [[ -n ${_cifar10_raw-} ]]; then  # fish quotes it itself, and takes a line for a word
        [[ $word != *[[:cntrl:]]* ]]
    elif [[ $quote == \' ]]; then
        [[ $word != *\'* ]]
    elif [[ $quote == \" ]]; then
        printf -v word '%s' "${word//[\\]/\\\\}"
        printf -v word '%s' "${word//[\"]/\\\"}"
        printf -v word '%s' "${word//[\$]/\\\$}"
        printf -v word '%s' "${word//[\`]/\\\`}"
    else
        printf -v word %q "$word"
    fi
}

_cifar10_add() {  # offers those words that begin with $cur; a name is data and is not expanded
    local word
    for word; do
        [[ $word == "$cur"* ]] && _cifar10_quoted && COMPREPLY+=("$before$word")
    done
}

_cifar10() {
    local cur=${COMP_WORDS[COMP_CWORD]} flag=${COMP_WORDS[COMP_CWORD-1]} at=1 runs=runs
    local before= command= reply= file i plain quote
    COMPREPLY=()
    if [[ ${COMP_WORDS[0]##*/} == python* ]]; then
        at=2
        [[ ${COMP_WORDS[1]##*/} == cli.py && $COMP_CWORD -gt 1 ]] || return 0
    fi
    [[ $COMP_CWORD -gt $at ]] && command=${COMP_WORDS[at]}
    for ((i = at; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --runs_dir) runs=${COMP_WORDS[i+1]} && [[ $runs == = ]] && runs=${COMP_WORDS[i+2]} ;;
        --runs_dir=*) runs=${COMP_WORDS[i]#*=} ;;
        esac
    done
    [[ -z ${_cifar10_raw-} ]] && _cifar10_plain "$runs" && runs=$plain
    runs=${runs/#\~/$HOME} quote=
    if [[ $cur == = ]]; then  # bash splits --flag=value into three words
        cur=
    elif [[ $flag == = ]]; then
        flag=${COMP_WORDS[COMP_CWORD-2]}
    elif [[ $cur == --*=* ]]; then  # zsh does not
        flag=${cur%%=*} before=${cur%%=*}= cur=${cur#*=}
    elif [[ -z $command || $cur == -* ]]; then  # a command, or a flag
        flag=
        _cifar10_table "$command"
        _cifar10_add $reply
        return 0
    fi
    case $flag in -*) ;; *) flag= ;; esac
    _cifar10_plain "$cur"
    cur=$plain
    _cifar10_table "$command $flag"
    _cifar10_add $reply
    case $command$flag in
    *--config | *-c)
        for file in "$cur"*.yaml "$cur"*.yml; do [[ -f $file ]] && _cifar10_add "$file"; done
        [[ $cur == */* ]] && for file in "$cur"*/; do [[ -d $file ]] && _cifar10_add "$file"; done ;;
    *--ckpt_path)
        for file in "$runs"/*/*.ckpt; do [[ -f $file ]] && _cifar10_add "$file"; done ;;
    *--name | *--init_from | *--baseline | compare | export_runs)
        for file in "$runs/$cur"*/record.json; do
            [[ -f $file ]] && file=${file%/*} && _cifar10_add "${file##*/}"
        done ;;
    esac
    return 0
}

if [ -n "${ZSH_VERSION-}" ]; then
    type compdef >/dev/null || { autoload -Uz compinit && compinit; }
    autoload -Uz bashcompinit && bashcompinit
    _cifar10_python() {  # other calls of Python are zsh's own
        if [[ ${words[2]-} == *cli.py && $CURRENT -gt 2 ]]; then
            _bash_complete -o default -F _cifar10
        else
            _python "$@"
        fi
    }
    compdef _cifar10_python python python3
else
    complete -o bashdefault -o default -F _cifar10 python python3
fi
complete -o bashdefault -o default -F _cifar10 cifar10
